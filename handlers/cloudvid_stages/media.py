"""Pictures and frames as files: PNG and MP4, each with its recipe inside."""

import io
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, PngImagePlugin

from cloudvid_schema.protocol import RECIPE_KEY
from cloudvid_stages.recipe import recipe_text

_PNG_LEVEL = 1  # zlib's fastest: half the time of level 6 for files a tenth larger
_REASONS = 4  # lines of what ffmpeg says when it fails: the first of them names the cause, the last is general
# RGB to limited-range BT.709, and tagged so: players take an untagged clip for one or the other by its size.
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)


class EncodingError(RuntimeError):
    """ffmpeg did not make the clip; the message holds the last lines of what it said."""


def png_bytes(image: Image.Image, recipe: dict[str, Any] | None) -> bytes:
    """A picture as a PNG file, lossless, with its recipe, if any, in an iTXt chunk."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, recipe_text(recipe))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
    return buffer.getvalue()


def mp4_bytes(frames: np.ndarray, fps: int, recipe: dict[str, Any] | None) -> bytes:
    """Frames (N×H×W×3 uint8, RGB; H and W even) as an MP4 file: H.264, yuv420p (BT.709), faststart, exactly these
    frames at exactly this rate, with their recipe, if any, as its comment.

    One encoder thread, as x264's output depends on how many there are: 25 frames of 1024×576 take 0.25 s.

    Raises:
        EncodingError: ffmpeg failed.
    """
    count, height, width, _ = frames.shape
    with tempfile.TemporaryDirectory(prefix="cloudvid-") as folder:  # faststart rewrites the file: no pipe
        target = Path(folder, "clip.mp4")
        inputs = (
            "-hide_banner -loglevel error -nostdin -y "
            f"-f rawvideo -pixel_format rgb24 -video_size {width}x{height} -framerate {fps} -i pipe:0"
        ).split()
        if recipe is not None:  # in a file, since everybody on the machine can read a command line
            text = re.sub(r"[=;#\\\n]", r"\\\g<0>", recipe_text(recipe))
            Path(folder, "recipe").write_text(f";FFMETADATA1\ncomment={text}\n")
            inputs += ["-f", "ffmetadata", "-i", str(Path(folder, "recipe")), "-map", "0:v", "-map_metadata", "1"]
        options = (
            f"-frames:v {count} -vf {_TO_BT709} -pix_fmt yuv420p "
            "-c:v libx264 -preset veryfast -crf 20 -threads 1 -movflags +faststart"
        )
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *inputs, *options.split(), str(target)]
        pixels = np.ascontiguousarray(frames)
        done = subprocess.run(command, input=memoryview(pixels.data).cast("B"), capture_output=True, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise EncodingError(f"ffmpeg ended with {done.returncode}: {'; '.join(said[-_REASONS:]) or 'no message'}")
        return target.read_bytes()
