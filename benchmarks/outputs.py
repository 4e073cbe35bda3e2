"""Whether what was made is right: the pixels of files, compared."""

from pathlib import Path

import numpy as np

from cloudvid import Scene
from demo.motion import pixels_of


class WrongOutput(Exception):
    """Two ways to make the same did not, or a file is not what was asked for."""


def check(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a file.

    Raises:
        WrongOutput: another size or number of frames, or one colour throughout, which is what NaN becomes.
    """
    found = pixels_of(data)
    if found.shape != shape:
        raise WrongOutput(f"made {found.shape}, not {shape}")
    if found.min() == found.max():
        raise WrongOutput("made one colour throughout, as where values are not finite")
    return found


def check_scenes(scenes: list[Scene], folder: Path, same_as: Path | None = None) -> None:
    """Check that a folder holds every scene's picture and clip as asked for, with another folder's pixels, if any.

    Raises:
        WrongOutput: it does not.
    """
    for scene in scenes:
        side = scene.t2i_params.height, scene.t2i_params.width, 3
        for name, count in ((scene.picture_name, 1), (scene.video_name, scene.i2v_params.num_frames or 0)):
            found = check((folder / name).read_bytes(), (count, *side))
            if same_as is not None and not np.array_equal(found, pixels_of((same_as / name).read_bytes())):
                raise WrongOutput(f"{name} has other pixels")
