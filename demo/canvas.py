"""A canvas that is drawn on in heights of the picture, with smooth edges."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[float, float, float]
Point = tuple[float, float]

_SUPERSAMPLING = 3  # in each direction; by 2, the edge of a mast shows its steps


class Canvas:
    """Pixels to be drawn on; later shapes cover earlier ones.

    Args:
        width: pixels.
        height: pixels; coordinates are given in these, from the top left corner.
    """

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image, "RGBA")
        self._height = height * _SUPERSAMPLING
        self.aspect = width / height

    def gradient(self, colours: Sequence[RGB], bottom: float) -> None:
        """Fill everything with colours that run from the top to a height, and below it with the last."""
        rows = np.arange(self._height) / (bottom * self._height) * (len(colours) - 1)
        columns = [np.interp(rows, np.arange(len(colours)), channel) for channel in zip(*colours, strict=True)]
        column = np.stack(columns, axis=-1)[:, None].round().astype(np.uint8)
        self._image.paste(Image.fromarray(column).resize(self._image.size, Image.Resampling.NEAREST))

    def polygon(self, points: Iterable[Point], colour: RGB, opacity: float = 1) -> None:
        """A filled shape with straight sides."""
        self._draw.polygon([(x * self._height, y * self._height) for x, y in points], fill=_fill(colour, opacity))

    def blob(self, points: Sequence[Point], colour: RGB, opacity: float = 1) -> None:
        """A filled shape whose outline runs smoothly through these points."""
        self.polygon(smooth(points), colour, opacity)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB, opacity: float = 1) -> None:
        """An ellipse around (x, y)."""
        box = [side * self._height for side in (x - rx, y - ry, x + rx, y + ry)]
        self._draw.ellipse(box, fill=_fill(colour, opacity))

    def pixels(self) -> np.ndarray:
        """H×W×3 uint8, RGB."""
        return np.asarray(self._image.reduce(_SUPERSAMPLING))


def _fill(colour: RGB, opacity: float) -> tuple[int, ...]:
    return (*(min(255, max(0, round(channel))) for channel in colour), round(255 * opacity))


def smooth(points: Sequence[Point], pieces: int = 6) -> list[Point]:
    """A closed Catmull-Rom curve through these points, as so many straight pieces between two of them."""
    p1 = np.array(points)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = (np.arange(pieces) / pieces)[:, None, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return [(float(x), float(y)) for x, y in curve.transpose(1, 0, 2).reshape(-1, 2)]


def tinted(colour: RGB, light: RGB) -> RGB:
    """A colour in a light: channel by channel."""
    return (colour[0] * light[0], colour[1] * light[1], colour[2] * light[2])


def mixed(first: RGB, second: RGB, share: float) -> RGB:
    """Two colours mixed; `share` is the second's."""
    a, b, c = (x + (y - x) * share for x, y in zip(first, second, strict=True))
    return (a, b, c)
