"""How far things move in a clip, in pixels."""

import io
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def pixels_of(data: bytes) -> np.ndarray:
    """The pixels of a PNG or MP4 file: N×H×W×3 uint8, RGB."""
    if data.startswith(b"\x89PNG"):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        Path(file.name).write_bytes(data)
        frames = imageio_ffmpeg.read_frames(file.name)
        width, height = next(frames)["size"]
        return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB."""
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def motion(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, of 255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def brightness(frames: np.ndarray) -> np.ndarray:
    """Mean of each frame, of 255."""
    return frames.reshape(len(frames), -1).mean(1)


def displacement(first: np.ndarray, last: np.ndarray, box: Box, reach: tuple[int, int]) -> tuple[float, float]:
    """How far the contents of a box went from one picture to another, right and down, by the best match.

    Args:
        first: H×W×3 uint8.
        last: likewise.
        box: of the thing, in the first picture.
        reach: how far it may have gone in either direction, right or left and up or down.
    """
    left, top, right, bottom = box
    wanted = first[top:bottom, left:right].astype(np.int16)
    errors = np.full((2 * reach[1] + 1, 2 * reach[0] + 1), np.inf)
    for dy in range(-reach[1], reach[1] + 1):
        for dx in range(-reach[0], reach[0] + 1):
            found = last[max(0, top + dy) : bottom + dy, max(0, left + dx) : right + dx]
            if found.shape == wanted.shape and top + dy >= 0 and left + dx >= 0:
                errors[dy + reach[1], dx + reach[0]] = np.abs(found - wanted).mean()
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    return _between(errors[row], int(column)) - reach[0], _between(errors[:, column], int(row)) - reach[1]


def _between(errors: np.ndarray, best: int) -> float:
    """The minimum of the parabola through the best value and its neighbours."""
    if not 0 < best < len(errors) - 1:
        return best
    before, here, after = errors[best - 1 : best + 2]
    bend = before - 2 * here + after
    return best + (0.5 * (before - after) / bend if np.isfinite(bend) and bend > 0 else 0)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of two rows of distinct values."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (first, second)]
    return float(np.corrcoef(np.stack(ranks))[0, 1])
