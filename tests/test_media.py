"""Files: what is written is what was asked for."""

import io
import json

import numpy as np
import pytest
from movies import read_mp4
from PIL import Image

from cloudvid_stages import media

RECIPE = {"stage": "t2i", "parameters": {"prompt": "é \n \u2603 \x01"}}


def moving_frames(count, height, width):
    """A grey ramp that brightens: every frame differs from every other."""
    ramp = np.linspace(0, 120, width)[None, None, :, None]
    step = np.linspace(0, 120, count)[:, None, None, None]
    return np.broadcast_to(ramp + step, (count, height, width, 3)).astype(np.uint8)


def test_a_png_holds_the_pixels_and_the_recipe():
    image = Image.fromarray(moving_frames(1, 48, 64)[0])
    read = Image.open(io.BytesIO(media.png_bytes(image, RECIPE)))
    assert read.tobytes() == image.tobytes()
    assert json.loads(read.text["cloudvid"]) == RECIPE


@pytest.mark.parametrize(
    ("count", "size", "fps"), [(2, (64, 64), 1), (5, (128, 256), 12), (25, (64, 128), 6), (14, (64, 64), 60)]
)
def test_an_mp4_has_exactly_its_frames_its_rate_and_its_size(tmp_path, count, size, fps):
    frames = moving_frames(count, *size)
    path = tmp_path / "clip.mp4"
    path.write_bytes(media.mp4_bytes(frames, fps, RECIPE))
    read, rate, comment = read_mp4(path)
    assert read.shape == frames.shape
    assert rate == fps
    assert json.loads(comment) == RECIPE
    assert np.abs(read.astype(int) - frames).mean() < 3


def test_an_mp4_starts_at_once_and_holds_the_recipe(tmp_path):
    data = media.mp4_bytes(moving_frames(3, 64, 64), 6, RECIPE)
    assert data.index(b"moov") < data.index(b"mdat")
    assert media.recipe_text(RECIPE).encode() in data


def test_the_same_frames_make_the_same_bytes():
    frames = moving_frames(4, 64, 64)
    assert media.mp4_bytes(frames, 6, RECIPE) == media.mp4_bytes(frames, 6, RECIPE)


def test_what_ffmpeg_refuses_is_an_error_with_its_reason():
    with pytest.raises(media.EncodingError, match="ffmpeg ended with"):
        media.mp4_bytes(np.zeros((2, 63, 65, 3), np.uint8), 6, RECIPE)
