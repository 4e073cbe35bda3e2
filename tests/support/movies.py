"""Reads MP4 files back with ffmpeg."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def _ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments]
    return subprocess.run(command, capture_output=True, check=True)


def read_mp4(path: Path) -> tuple[np.ndarray, float, str]:
    """Frames (N×H×W×3 uint8), frames per second, and the comment.

    The stream is checked on the way: H.264, yuv420p, tagged as limited-range BT.709.
    """
    done = _ffmpeg("-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-")
    said = done.stderr.decode()
    stream = re.search(r"Stream #0:0.*?: Video: (.*)", said)[1]
    assert "h264" in stream
    assert "yuv420p(tv, bt709, progressive)" in stream
    width, height = map(int, re.search(r", (\d{2,5})x(\d{2,5})", stream).groups())
    fps = float(re.search(r"([\d.]+) fps", stream)[1])
    metadata = _ffmpeg("-i", str(path), "-f", "ffmetadata", "-").stdout.decode()
    comment = re.search(r"^comment=(.*)$", metadata, re.MULTILINE)
    text = re.sub(r"\\(.)", r"\1", comment[1]) if comment else ""
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3), fps, text
