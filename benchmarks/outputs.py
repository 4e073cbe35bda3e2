"""Whether what was made is right: the pixels of files, compared."""

import io
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image
from stand import WrongOutput

from cloudvid import Scene


def pixels(data: bytes) -> np.ndarray:
    """The pixels of a PNG or MP4 file, N×H×W×3 uint8, RGB."""
    if data.startswith(b"\x89PNG"):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        Path(file.name).write_bytes(data)
        frames = imageio_ffmpeg.read_frames(file.name)
        width, height = next(frames)["size"]
        return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


def check(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a file.

    Raises:
        WrongOutput: another size or number of frames, or one colour throughout, which is what NaN becomes.
    """
    found = pixels(data)
    if found.shape != shape:
        raise WrongOutput(f"made {found.shape}, not {shape}")
    if found.min() == found.max():
        raise WrongOutput("made one colour throughout, as where values are not finite")
    return found


def check_scenes(scenes: list[Scene], folder: Path, same_as: Path | None = None) -> None:
    """Return where a folder holds every scene's picture and clip as asked for, with another folder's pixels, if any.

    Raises:
        WrongOutput: it does not.
    """
    for scene in scenes:
        side = scene.t2i_params.height, scene.t2i_params.width, 3
        for name, count in ((scene.picture_name, 1), (scene.video_name, scene.i2v_params.num_frames or 0)):
            found = check((folder / name).read_bytes(), (count, *side))
            if same_as is not None and not np.array_equal(found, pixels((same_as / name).read_bytes())):
                raise WrongOutput(f"{name} has other pixels")
