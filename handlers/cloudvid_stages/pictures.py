"""The picture of an image-to-video request: looked at by its header, then decoded, then fitted to the clip."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import repeat

from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import RequestError
from cloudvid_schema.strict_json import shorten

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "I;16", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_MAX_SIDE = 2**16 - 1
"""Longest side in pixels, as in a JPEG. Pillow keeps a pointer a row: 16 million rows of one pixel take 300 MiB."""
_MAX_PARTS = {"chunks of pixels": 20_000, "scans": 100, "compressed texts and profiles": 100, "other parts": 500}
"""Most parts of a file, by what they are. It has room for millions, each of which costs Pillow time: a scan
of 30 bytes is a pass over all pixels, a profile of eight thousand bytes inflates to eight million."""
_MAX_METADATA = 8 * 2**20
"""Most bytes of a file that are no pixels. Pillow walks over tables and EXIF data a few bytes at a time."""
_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
"""What begins a JPEG's segment, or ends the file. No other marker has a length, for Pillow and libjpeg alike."""
_SCAN, _END = b"\xda", b"\xd9"
_MAX_EXIF = 2**20
"""Most bytes of EXIF data. A camera writes up to 64 KiB; a megabyte in the orientation's own tag takes a second."""
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation. Pillow's `exif_transpose` decodes and writes every other tag too, which can take minutes."""
_PNG_CHUNKS = {b"IDAT": "chunks of pixels"} | dict.fromkeys(
    (b"iCCP", b"iTXt", b"zTXt"), "compressed texts and profiles"
)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_USUAL_GAMMA = 1 / 2.2

# A few bytes may inflate to as many as a file may have that are no pixels. Of text, each may be a character of four.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_METADATA


def open_picture(
    data: bytes, max_pixels: int = 4096 * 4096, check_size: Callable[[tuple[int, int]], None] = lambda size: None
) -> Image.Image:
    """The picture in a file as RGB (sRGB), upright, transparent parts on black.

    Args:
        max_pixels: most pixels, held against the file's header before anything is decoded.
        check_size: told width and height of the header, before the picture is decoded and turned upright; what it
            raises is passed on.

    Raises:
        RequestError: 422; not a picture, of a format, size or kind that is not taken, or broken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file can cause a line of the log for each of 65535 broken EXIF tags
        image = _looked_at(data, max_pixels)
        check_size(image.size)
        try:
            image.load()
            for key in ("xmp", "XML:com.adobe.xmp"):
                image.info.pop(key, None)  # viewers turn a picture by its EXIF data only; Pillow would also by these
            if (size := len(image.info.get("exif", b""))) > _MAX_EXIF:
                raise _refused(f"must have at most {_MAX_EXIF} bytes of EXIF data, got {size}")
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
            image = image.copy() if turn is None else image.transpose(turn)  # a copy has the palette that a file lacks
            image = _to_srgb(_to_8_bits(image))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            return image.convert("RGB")
        except (MemoryError, RequestError):
            raise
        except Exception as error:  # Pillow's decoders raise what truncated or absurd data led them to
            raise _refused(f"must be a whole picture ({type(error).__name__})") from None


def _looked_at(data: bytes, max_pixels: int) -> Image.Image:
    """The picture, not decoded yet: its header promises nothing that is not taken."""
    left, room = dict(_MAX_PARTS), _MAX_METADATA
    for part, length in _parts(data):
        left[part] -= 1
        room -= length if part not in ("chunks of pixels", "scans") else 0
        if left[part] < 0:
            raise _refused(f"must have at most {_MAX_PARTS[part]} {part}")
        if room < 0:
            raise _refused(f"must have at most {_MAX_METADATA} bytes that are no pixels")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _refused("must be a PNG, JPEG or WebP picture") from None
    except Image.DecompressionBombError:
        raise _refused(f"must have at most {max_pixels} pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _refused(f"must be a readable picture ({type(error).__name__}: {shorten(str(error))})") from None
    size = f"{image.width}×{image.height}"
    if image.width * image.height > max_pixels:
        raise _refused(f"must have at most {max_pixels} pixels, got {size}")
    if max(image.size) > _MAX_SIDE:
        raise _refused(f"must have at most {_MAX_SIDE} pixels a side, got {size}")
    # A camera's JPEG with a preview inside (MPO) is one picture and then some: its first frame is the picture.
    if (frames := getattr(image, "n_frames", 1)) != 1 and image.format != "MPO":
        raise _refused(f"must be a still picture, got {frames} frames")
    if image.mode not in _MODES:
        raise _refused(f"must have 8 bits a channel, got mode {image.mode}")
    return image


def _parts(data: bytes) -> Iterator[tuple[str, int]]:
    """What the chunks of a PNG or WebP or a JPEG's segments are, and their bytes, up to its end; what follows there is
    not read.
    """
    if data.startswith(b"\x89PNG"):
        position = 8
        while len(head := data[position : position + 8]) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            yield _PNG_CHUNKS.get(head[4:], "other parts"), min(length, len(data) - position)
            position += 12 + length
    elif data.startswith(b"\xff\xd8"):
        position, in_scan = 2, False
        while (marker := _MARKER.search(data, position)) and not (in_scan and marker[1] == _END):
            if not in_scan:
                yield from repeat(("other parts", 1), marker.start() - position)  # Pillow reads these bytes singly
            in_scan = in_scan or marker[1] == _SCAN
            length = 0 if marker[1] == _END else int.from_bytes(data[marker.end() : marker.end() + 2], "big")
            yield "scans" if marker[1] == _SCAN else "other parts", length
            position = marker.end() + length
    elif data.startswith(b"RIFF"):
        position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
        while position + 8 <= end:
            length = int.from_bytes(data[position + 4 : position + 8], "little")
            yield ("chunks of pixels" if data[position : position + 4] in _WEBP_PIXELS else "other parts"), length
            position += 8 + length + length % 2


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A picture in grey of 16 bits as one of 8; Pillow itself reads those in colour as such."""
    if image.mode != "I;16":
        return image
    wide, transparent = image.convert("I"), image.info.get("transparency")
    grey = wide.point([value >> 8 for value in range(2**16)], "L")
    if transparent is not None:
        grey.info.pop("transparency")
        grey.putalpha(wide.point([255 * (value != transparent) for value in range(2**16)], "L"))
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    """The picture as RGB or RGBA in sRGB's colours if it says what its own mean, else as it is."""
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    colours = image if image.mode in ("L", "CMYK") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    try:
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if ImageCms.getProfileDescription(source).startswith("sRGB IEC61966-2"):
                return image  # its tables differ from ours in the last bit
            converted = ImageCms.buildTransform(source, _SRGB, colours.mode, "RGB").apply(colours)
        elif gamma and "srgb" not in image.info and abs(gamma / _USUAL_GAMMA - 1) > 0.05:  # as libpng decides it
            table = [_encoded((value / 255) ** (1 / gamma)) for value in range(256)]
            converted = colours.convert("RGB").point(table * 3)
        else:
            return image
    except (ImageCms.PyCMSError, OSError):  # broken, or of other channels than the picture's
        return image
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def _encoded(light: float) -> int:
    """The value (0 to 255) that sRGB has for an amount of light (0 to 1)."""
    return round(255 * (light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))


def fit_picture(image: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """An RGB picture at the clip's size in pixels: `crop` covers the clip and cuts what stands over, `pad` shows all on
    black, `stretch` changes the aspect.
    """
    size = (width, height)
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=(0, 0, 0))
    return image.resize(size, Image.Resampling.LANCZOS)


def _refused(rule: str) -> RequestError:
    return RequestError.invalid([Fault("image", rule, has_value=False)])
