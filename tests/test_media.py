"""Files: what is written is what was asked for."""

import io
import json
import os
import tempfile

import numpy as np
import pytest
from PIL import Image

from cloudvid_stages import media
from cloudvid_stages.settings import SettingsError
from support import stages
from support.movies import read_mp4

RECIPE = {"stage": "t2i", "parameters": {"prompt": "é \n \u2603 \x01"}}


def moving_frames(count, height, width):
    """A grey ramp that brightens: every frame differs from every other."""
    ramp = np.linspace(0, 120, width)[None, None, :, None]
    step = np.linspace(0, 120, count)[:, None, None, None]
    return np.broadcast_to(ramp + step, (count, height, width, 3)).astype(np.uint8)


COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 200, 30),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 30),
    "cyan": (20, 210, 220),
    "magenta": (220, 30, 210),
    "skin": (224, 172, 138),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def filled(*colours, size=64, count=2):
    """Frames of one column a colour."""
    row = np.repeat(np.array(colours, np.uint8), size, axis=0)[None]
    return np.broadcast_to(row, (count, size, size * len(colours), 3))


def through_mp4(frames, tmp_path, recipe=None):
    (tmp_path / "clip.mp4").write_bytes(media.mp4_bytes(frames, 6, recipe))
    return read_mp4(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_is_played_as_it_was_made(name, tmp_path):
    """A clip whose matrix or range is another than its tag says is off by 10 to 40 for saturated colours."""
    read, _, _ = through_mp4(filled(COLOURS[name]), tmp_path)
    assert np.abs(read.mean((0, 1, 2)) - COLOURS[name]).max() < 4


def test_channels_and_sides_are_not_exchanged(tmp_path):
    left, right, below = COLOURS["red"], COLOURS["blue"], COLOURS["green"]
    frames = np.concatenate([filled(left, right), filled(below, below)], axis=1)
    frames = np.concatenate([frames, frames[:, ::-1]])
    read, _, _ = through_mp4(frames, tmp_path)
    for frame, upright in zip(read, (True, True, False, False), strict=True):
        upper, lower = (frame[:64], frame[64:]) if upright else (frame[64:], frame[:64])
        for part, colour in ((upper[:, :64], left), (upper[:, 64:], right), (lower, below)):
            assert np.abs(part[8:-8, 8:-8].mean((0, 1)) - colour).max() < 6


def test_a_clip_of_a_coloured_scene_stays_close_to_it(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 128))
    ripples = 0.5 + 0.5 * np.sin(20 * x + 7 * y)
    frames = np.stack([np.stack([x, (y + shift) % 1, ripples], -1) for shift in (0.0, 0.1, 0.2)])
    frames = (frames * 255).astype(np.uint8)
    read, _, _ = through_mp4(frames, tmp_path)
    assert np.abs(read.astype(int) - frames).mean() < 3.5


def test_a_clip_without_a_recipe_has_no_comment(tmp_path):
    _, _, comment = through_mp4(filled(COLOURS["skin"]), tmp_path)
    assert comment == ""


def test_frames_of_any_memory_layout_make_the_same_clip():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 128, 3), np.uint8)
    planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert not planes.flags.c_contiguous
    assert media.mp4_bytes(planes, 6, None) == media.mp4_bytes(frames, 6, None)


def test_a_coloured_png_holds_exactly_its_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    read = Image.open(io.BytesIO(media.png_bytes(image, None)))
    assert (read.mode, read.size, read.tobytes()) == ("RGB", (64, 48), image.tobytes())
    assert read.text == {}


def test_a_png_holds_the_pixels_and_the_recipe():
    image = Image.fromarray(moving_frames(1, 48, 64)[0])
    read = Image.open(io.BytesIO(media.png_bytes(image, RECIPE)))
    assert read.tobytes() == image.tobytes()
    assert json.loads(read.text["cloudvid"]) == RECIPE


@pytest.mark.parametrize(
    ("count", "size", "fps"), [(2, (64, 64), 1), (5, (128, 256), 12), (25, (64, 128), 6), (14, (64, 64), 60)]
)
def test_an_mp4_has_exactly_its_frames_rate_and_size(tmp_path, count, size, fps):
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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs")
def test_a_clip_is_the_same_on_any_number_of_cpus():
    """x264 makes other frames where it has more threads."""
    frames, cpus = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8), os.sched_getaffinity(0)
    on_many = media.mp4_bytes(frames, 6, None)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert media.mp4_bytes(frames, 6, None) == on_many
    finally:
        os.sched_setaffinity(0, cpus)


def test_encoding_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    media.mp4_bytes(moving_frames(2, 64, 64), 6, None)
    with pytest.raises(media.EncodingError):
        media.mp4_bytes(np.zeros((2, 63, 65, 3), np.uint8), 6, None)
    assert not list(tmp_path.iterdir())


def test_what_ffmpeg_refuses_is_an_error_with_its_reason():
    with pytest.raises(media.EncodingError, match=r"ffmpeg ended with \d+: (?!no message).{10}"):
        media.mp4_bytes(np.zeros((2, 63, 65, 3), np.uint8), 6, RECIPE)


@pytest.fixture
def without_x264(tmp_path, monkeypatch):
    """What an ffmpeg without libx264 says."""
    encoder = tmp_path / "ffmpeg"
    lines = ("version", "Unknown encoder 'libx264'", "Error selecting an encoder", "Error opening", "Encoder not found")
    encoder.write_text("#!/bin/sh\n" + "".join(f'echo "{line}" >&2\n' for line in lines) + "exit 3\n")
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))


def test_the_reason_is_the_last_lines_of_several(without_x264):
    with pytest.raises(media.EncodingError, match=r"^ffmpeg ended with 3: Unknown encoder 'libx264'; .*not found$"):
        media.mp4_bytes(moving_frames(2, 64, 64), 6, RECIPE)


def test_no_recipe_is_on_ffmpegs_command_line(tmp_path, monkeypatch):
    encoder = tmp_path / "ffmpeg"
    encoder.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexit 3\n')
    encoder.chmod(0o755)
    monkeypatch.setattr(media.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(encoder))
    with pytest.raises(media.EncodingError):
        media.mp4_bytes(moving_frames(2, 64, 64), 6, {"stage": "i2v", "prompt": "canary"})
    assert "canary" not in (tmp_path / "arguments").read_text()


def test_an_mp4_holds_every_character_of_its_recipe(tmp_path):
    recipe = {"prompt": "\\ \\\\n = ; # ' \" % [global] \r\n\x00\x7f\ud800 é 😀", "=": ["\\;#=" * 10_000]}
    _, _, comment = through_mp4(moving_frames(2, 64, 64), tmp_path, recipe)
    assert comment == media.recipe_text(recipe)


def test_a_stage_that_cannot_encode_does_not_load(without_x264):
    with pytest.raises(SettingsError, match=r"ffmpeg cannot encode clips.*Unknown encoder 'libx264'"):
        stages.load("none", "i2v")
