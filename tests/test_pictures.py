"""The picture of a clip: what is taken, what is refused, and how it is fitted."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from cloudvid_schema.protocol import RequestError
from cloudvid_schema.sizes import clip_size
from cloudvid_stages.pictures import fit_picture, open_picture
from support.picture_parts import MIB, PNG_MAGIC, chunk, encoded, ihdr, png, rows, scans, segment, with_segments


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


def with_palette(kind="PNG", transparent=1):
    """A picture of three colours by number, one of them transparent: a left half, a right half, a lower half."""
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.paste(1, (32, 0, 64, 64))
    image.paste(2, (0, 32, 64, 64))
    return encoded(image, kind, transparency=transparent)


def test_a_transparent_colour_of_a_palette_becomes_black():
    opened = open_picture(with_palette())
    assert [opened.getpixel(at) for at in ((5, 5), (60, 5), (5, 60))] == [(255, 0, 0), (0, 0, 0), (0, 0, 255)]


def test_alphas_of_a_palette_are_laid_on_black():
    opened = open_picture(with_palette(transparent=bytes([255, 128, 0])))
    assert [opened.getpixel(at) for at in ((5, 5), (60, 5), (5, 60))] == [(255, 0, 0), (0, 128, 0), (0, 0, 0)]


def test_a_transparent_colour_without_alpha_becomes_black():
    image = Image.new("RGB", (64, 64), (10, 200, 30))
    image.paste((200, 10, 30), (32, 0, 64, 64))
    opened = open_picture(encoded(image, transparency=(10, 200, 30)))
    assert [opened.getpixel(at) for at in ((5, 5), (60, 5))] == [(0, 0, 0), (200, 10, 30)]


@pytest.mark.parametrize(("alpha", "colour"), [(0, (0, 0, 0)), (128, (100, 50, 25)), (255, (200, 100, 50))])
def test_what_is_half_transparent_is_half_as_bright(alpha, colour):
    assert open_picture(encoded(Image.new("RGBA", (64, 64), (200, 100, 50, alpha)))).getpixel((5, 5)) == colour


def test_grey_with_alpha_is_laid_on_black():
    assert open_picture(encoded(Image.new("LA", (64, 64), (200, 128)))).getpixel((5, 5)) == (100, 100, 100)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_coloured_picture_keeps_every_pixel(kind):
    image = gradient()
    assert open_picture(encoded(image, kind, lossless=True)).tobytes() == image.tobytes()


def test_inks_become_the_colours_they_stand_for():
    inks = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    red, green, blue = open_picture(encoded(inks, "JPEG", quality=95)).getpixel((5, 5))
    assert red > 240
    assert max(green, blue) < 15


def swapped_profile():
    """A colour profile in which red and blue have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"none").replace(b"bXYZ", b"rXYZ").replace(b"none", b"bXYZ")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_colours_are_converted_as_the_profile_says(kind, mode):
    image = Image.new("RGB", (64, 64), (200, 50, 10))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    opened = open_picture(encoded(image, kind, icc_profile=swapped_profile(), quality=95)).getpixel((5, 5))
    assert np.abs(np.subtract(opened, (10, 50, 200))).max() <= 4


def test_transparency_outlives_the_conversion_of_colours():
    image = Image.new("RGBA", (64, 64), (200, 50, 10, 128))
    opened = open_picture(encoded(image, icc_profile=swapped_profile()))
    assert np.abs(np.subtract(opened.getpixel((5, 5)), (5, 25, 100))).max() <= 1


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"no profile"), ("RGB", swapped_profile()[:200]), ("L", swapped_profile())],
    ids=["none", "cut", "of other channels"],
)
def test_a_profile_that_cannot_be_used_changes_nothing(mode, profile):
    image = gradient().convert(mode)
    assert open_picture(encoded(image, icc_profile=profile)).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(("gamma", "grey"), [(45455, 128), (55556, 146), (100_000, 188)])
def test_an_unusual_gamma_of_a_png_is_applied(gamma, grey):
    data = png(chunk(b"gAMA", gamma.to_bytes(4, "big")), pixels=rows(value=b"\x80"))
    assert open_picture(data).getpixel((5, 5)) == (grey, grey, grey)


def test_grey_of_16_bits_keeps_its_upper_8():
    header, pixels = ihdr(depth=16, colour=0), rows(value=b"\x12\xff", width_bytes=64)
    assert open_picture(png(header=header, pixels=pixels)).getpixel((5, 5)) == (0x12, 0x12, 0x12)
    half = zlib.compress((b"\0" + b"\x12\xff" * 32 + b"\x12\xfe" * 32) * 64)
    opened = open_picture(png(chunk(b"tRNS", b"\x12\xff"), header=header, pixels=half))
    assert [opened.getpixel(at) for at in ((5, 5), (60, 5))] == [(0, 0, 0), (0x12, 0x12, 0x12)]


@pytest.mark.parametrize(
    "before",
    [
        chunk(b"iCCP", b"p\0\0" + zlib.compress(swapped_profile() + bytes(7 * MIB))),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(7 * MIB))),
        chunk(b"tEXt", b"workflow\0" + b"x" * 7 * MIB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 7 * MIB),
    ],
    ids=["profile", "compressed text", "text", "XMP"],
)
def test_large_metadata_are_no_reason_to_refuse_a_picture(before):
    assert open_picture(png(before)).size == (64, 64)


def corners(image):
    """Which of four colours lies in which corner, clockwise from the upper left."""
    width, height = image.size
    places = [(4, 4), (width - 5, 4), (width - 5, height - 5), (4, height - 5)]
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}

    def nearest(pixel):
        return min(names, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, names[name], strict=True)))

    return [nearest(image.getpixel(place)) for place in places]


def four_colours(width=96, height=64):
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (width // 2, height // 2, width, height))
    return image


UPRIGHT = ["red", "green", "blue", "white"]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, UPRIGHT),
        (2, ["green", "red", "white", "blue"]),
        (3, ["blue", "white", "red", "green"]),
        (4, ["white", "blue", "green", "red"]),
        (5, ["red", "white", "blue", "green"]),
        (6, ["white", "red", "green", "blue"]),
        (7, ["blue", "green", "red", "white"]),
        (8, ["green", "blue", "white", "red"]),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_is_turned_upright(kind, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(encoded(four_colours(), kind, exif=exif))
    assert opened.size == ((64, 96) if orientation > 4 else (96, 64))
    assert corners(opened) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_turns_nothing(kind):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(four_colours(), kind, xmp=xmp)
    if kind == "PNG":
        at = len(PNG_MAGIC) + len(ihdr())
        data = data[:at] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[at:]
    assert corners(open_picture(data)) == UPRIGHT


def test_a_cameras_preview_is_passed_over():
    """A JPEG with a second picture inside (MPO): the first one counts."""
    data = encoded(four_colours(), "MPO", save_all=True, append_images=[gradient()])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    opened = open_picture(data)
    assert (opened.size, corners(opened)) == ((96, 64), UPRIGHT)


def test_the_most_pixels_are_taken_and_no_more():
    data = encoded(gradient())
    assert open_picture(data, 96 * 64).size == (96, 64)
    with pytest.raises(RequestError, match="must have at most 6143 pixels, got 96×64"):
        open_picture(data, 96 * 64 - 1)


@pytest.mark.parametrize("turned", [False, True])
def test_the_longest_side_is_taken_and_no_longer(turned):
    def line(length):
        width, height = (1, length) if turned else (length, 1)
        return png(header=ihdr(width, height), pixels=rows(width, height))

    assert max(open_picture(line(65535)).size) == 65535
    with pytest.raises(RequestError, match="must have at most 65535 pixels a side, got"):
        open_picture(line(65536))


@pytest.mark.parametrize(
    ("file", "most", "said"),
    [
        (lambda number: png(chunk(b"abCd") * (number - 1)), 500, "must have at most 500 other parts"),
        (lambda number: png(chunk(b"IDAT") * (number - 1)), 20_000, "must have at most 20000 chunks of pixels"),
        (lambda number: png(chunk(b"abCd", bytes(number - 13))), 8 * MIB, "at most 8388608 bytes that are no pixels"),
        (lambda number: png(chunk(b"zTXt", b"\0\0") * number), 100, "at most 100 compressed texts and profiles"),
        (lambda number: scans(number - 1, 64), 100, "must have at most 100 scans"),
    ],
    ids=["parts", "chunks of pixels", "metadata", "texts", "scans"],
)
def test_a_file_has_at_most_so_many_parts(file, most, said):
    """A PNG's header is such a part, and each file has pixels once by itself."""
    assert open_picture(file(most)).size == (64, 64)
    with pytest.raises(RequestError, match=said):
        open_picture(file(most + 1))


def test_bytes_inside_a_jpegs_segment_are_no_segments():
    """A preview in a photograph has hundreds of what outside would be markers."""
    preview = segment(0xE1, b"\xff\xe2\0\2" * 600 + b"\xff\xd9" * 600)
    assert open_picture(with_segments(preview)).size == (96, 64)


def test_bytes_between_a_jpegs_segments_count_one_by_one():
    assert open_picture(with_segments(segment(0xFE) + bytes(400))).size == (96, 64)
    with pytest.raises(RequestError, match="must have at most 500 other parts"):
        open_picture(with_segments(segment(0xFE) + bytes(501)))


def test_what_follows_a_pictures_end_is_not_looked_at():
    """As in a photograph that moves: the film stands behind it."""
    film = chunk(b"film", bytes(9 * MIB)) + chunk(b"abCd") * 600
    for data in (png(), encoded(gradient(), "JPEG")):
        assert open_picture(data + film).size == open_picture(data).size


def test_memory_that_runs_out_is_not_the_pictures_fault(monkeypatch):
    def full(_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(MemoryError):
        open_picture(encoded(gradient()))


def test_the_size_is_checked_before_pixels_are_decoded():
    told = []

    def check(size):
        told.append(size)
        raise ValueError("too large for the operator")

    broken = png(pixels=zlib.compress(bytes(10)), header=ihdr(96, 64))
    with pytest.raises(ValueError, match="too large for the operator"):
        open_picture(broken, check_size=check)
    assert told == [(96, 64)]


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
        (png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(9 * MIB)))), "must be a readable picture (ValueError: "),
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
def test_the_clips_default_size_follows_from_the_picture(picture, asked, size):
    assert clip_size(picture, *asked) == (size, [])


@pytest.mark.parametrize(("picture", "side"), [((40, 200), "width"), ((200, 3000), "height")])
def test_a_picture_of_unusable_size_is_refused_with_the_remedy(picture, side):
    _, (fault,) = clip_size(picture, None, None)
    assert fault.place == side
    assert fault.rule.endswith("give both width and height")


def test_crop_keeps_the_aspect_and_fills_the_clip():
    image = Image.new("RGB", (200, 100), (255, 255, 255))
    image.paste((255, 0, 0), (50, 0, 150, 100))  # the middle square
    fitted = np.asarray(fit_picture(image, 64, 64, "crop"))
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, 8:-8] == (255, 0, 0)).all()  # the filter reaches a few pixels over the cut


@pytest.mark.parametrize(
    ("size", "clip"), [((200, 100), (64, 64)), ((100, 200), (64, 64)), ((96, 64), (64, 192)), ((64, 96), (192, 64))]
)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_fitted_picture_keeps_its_middle_in_the_middle(size, clip, fit):
    fitted = fit_picture(four_colours(*size), *clip, fit)
    assert fitted.size == clip
    x, y = clip[0] // 2, clip[1] // 2
    assert corners(fitted.crop((x - 12, y - 12, x + 12, y + 12))) == UPRIGHT


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
