"""The picture of a clip: what is taken, what is refused, and how it is fitted."""

import zlib

import numpy as np
import pytest
from picture_parts import encoded, ihdr, png
from PIL import Image

from cloudvid_schema.protocol import RequestError
from cloudvid_schema.sizes import clip_size
from cloudvid_stages.pictures import fit_picture, open_picture


def gradient(width=96, height=64):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 2, y * 3, x + y], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_format_that_is_taken_opens_as_rgb(kind):
    image = open_picture(encoded(gradient(), kind))
    assert (image.mode, image.size) == ("RGB", (96, 64))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_each_mode_that_is_taken_opens_as_rgb(mode):
    assert open_picture(encoded(gradient().convert(mode))).mode == "RGB"


def test_transparent_parts_become_black():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert open_picture(encoded(image)).getpixel((5, 5)) == (0, 0, 0)


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encoded(gradient(96, 64), "JPEG", exif=exif)).size == (64, 96)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"not a picture", "must be a PNG, JPEG or WebP picture"),
        (b"", "must be a PNG, JPEG or WebP picture"),
        (b"<svg/>", "must be a PNG, JPEG or WebP picture"),
        (encoded(gradient(), "GIF"), "must be a PNG, JPEG or WebP picture"),
        (encoded(gradient())[:100], "must be a"),
        (encoded(gradient(), "JPEG")[:-200], "must be a whole picture"),
        (encoded(gradient(), "WEBP")[:100], "must be a"),
        (png(header=ihdr(5000, 5000)), "must have at most 16777216 pixels"),
        (png(header=ihdr(100_000, 100_000)), "must have at most 16777216 pixels"),
        (png(pixels=zlib.compress(bytes(100))), "must be a whole picture"),
        (
            encoded(gradient(), save_all=True, append_images=[gradient().rotate(90)]),
            "must be a still picture, got 2 frames",
        ),
        (encoded(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(90)]), "must be a still picture"),
        (encoded(Image.new("I;16", (64, 64))), "must have 8 bits a channel"),
    ],
)
def test_what_is_no_whole_still_picture_is_refused(data, rule):
    with pytest.raises(RequestError) as raised:
        open_picture(data)
    assert raised.value.body.code == 422
    assert raised.value.body.message.startswith(f"image: {rule}")


@pytest.mark.parametrize(
    ("picture", "asked", "size"),
    [
        ((768, 512), (None, None), (768, 512)),
        ((500, 300), (None, None), (448, 256)),
        ((500, 300), (256, 128), (256, 128)),
        ((512, 256), (256, None), (256, 128)),
        ((512, 256), (None, 512), (1024, 512)),
        ((2111, 65), (None, None), (2048, 64)),
    ],
)
def test_the_clips_size_follows_from_the_picture_where_it_is_not_asked_for(picture, asked, size):
    assert clip_size(picture, *asked) == (size, [])


@pytest.mark.parametrize(("picture", "side"), [((40, 200), "width"), ((200, 3000), "height")])
def test_a_picture_whose_own_size_cannot_be_animated_is_refused_with_the_remedy(picture, side):
    _, (fault,) = clip_size(picture, None, None)
    assert fault.place == side
    assert fault.rule.endswith("give both width and height")


def test_crop_keeps_the_aspect_and_fills_the_clip():
    image = Image.new("RGB", (200, 100), (255, 255, 255))
    image.paste((255, 0, 0), (50, 0, 150, 100))  # the middle square
    fitted = np.asarray(fit_picture(image, 64, 64, "crop"))
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, 8:-8] == (255, 0, 0)).all()  # the filter reaches a few pixels over the cut


def test_pad_shows_the_whole_picture_on_black():
    fitted = np.asarray(fit_picture(Image.new("RGB", (200, 100), (255, 255, 255)), 64, 64, "pad"))
    assert (fitted[:15] == 0).all()
    assert (fitted[17:47] == 255).all()
    assert (fitted[49:] == 0).all()


def test_stretch_is_done_only_when_asked_for():
    image = gradient(200, 100)
    assert fit_picture(image, 64, 64, "stretch").tobytes() == image.resize((64, 64), Image.Resampling.LANCZOS).tobytes()


def test_a_picture_of_the_right_size_is_not_touched():
    image = gradient()
    assert fit_picture(image, 96, 64, "crop") is image
