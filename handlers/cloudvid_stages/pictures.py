"""The picture of an image-to-video request: looked at by its header, then decoded, then fitted to the clip."""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import RequestError

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def open_picture(data: bytes, max_pixels: int = 4096 * 4096) -> Image.Image:
    """The picture in a file as RGB, upright, transparent parts on black.

    Args:
        data: the file.
        max_pixels: most pixels, held against the file's header before anything is decoded.

    Raises:
        RequestError: 422; not a picture, of a format, size or kind that is not taken, or broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        rule = "must be a PNG, JPEG or WebP picture"
        if not isinstance(error, UnidentifiedImageError):
            rule = f"must have at most {max_pixels} pixels"
        raise _refused(rule) from None
    except Exception as error:  # Pillow's parsers raise what the broken bytes led them to
        raise _refused(f"must be a readable picture ({type(error).__name__})") from None
    if image.width * image.height > max_pixels:
        raise _refused(f"must have at most {max_pixels} pixels, got {image.width}×{image.height}")
    # A camera's JPEG with a preview inside (MPO) is one picture and then some: its first frame is the picture.
    if (frames := getattr(image, "n_frames", 1)) != 1 and image.format != "MPO":
        raise _refused(f"must be a still picture, got {frames} frames")
    if image.mode not in _MODES:
        raise _refused(f"must have 8 bits a channel, got mode {image.mode}")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return image.convert("RGB")
    except Exception as error:  # as above: truncated or absurd data
        raise _refused(f"must be a whole picture ({type(error).__name__})") from None


def fit_picture(image: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """The picture at the clip's size.

    Args:
        image: RGB.
        width: pixels.
        height: pixels.
        fit: `crop` covers the clip and cuts what stands over, `pad` shows all on black, `stretch` changes the aspect.
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
