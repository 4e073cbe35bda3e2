"""Whether a file that is asked for has its place: a GPU is not put to work for what could not be stored."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudvid.errors import NoRoom
from cloudvid.outputs import Disk
from cloudvid_schema.protocol import ImageToVideoRequest, TextToImageRequest
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size

_BESIDES = 2**16  # bytes: a file's recipe and its container; a line of the manifest
MARGIN = 2**20
"""Bytes, for the manifest and the gallery."""


def most_bytes(request: TextToImageRequest | ImageToVideoRequest, picture: TextToImageRequest | None = None) -> int:
    """How large the file can become at most: noise, which nothing compresses.

    Args:
        request: what is asked for.
        picture: of a clip, the request of its picture.
    """
    if isinstance(request, TextToImageRequest):
        return round(request.width * request.height * 3 * 1.01) + _BESIDES
    of = picture or TextToImageRequest(prompt="-")
    (width, height), _ = clip_size((of.width, of.height), request.width, request.height)
    frames = request.num_frames or DEFAULT_FRAMES
    return frames * width * height * 3 // 2 + _BESIDES  # yuv420p


class Room:
    """Gives each file that is under way its place, so that no two count on the same one.

    Args:
        folder: where the files will lie.
        record: the manifest, which grows by a line a file.
        disk: where that is.
    """

    def __init__(self, folder: Path, record: Path, disk: Disk) -> None:
        self._folder, self._record, self._disk = folder, record, disk
        self._lock = threading.Lock()
        self._promised = 0

    @contextmanager
    def promised(self, name: str, size: int) -> Iterator[None]:
        """A place for a file, until the end of the block.

        Raises:
            NoRoom: there is none.
        """
        with self._lock:
            self._check(name, size)
            self._promised += size
        try:
            yield
        finally:
            with self._lock:
                self._promised -= size

    def _check(self, name: str, size: int) -> None:
        free, longest = self._disk.free(self._folder), self._disk.longest()
        record = self._record.stat().st_size if self._record.is_file() else 0
        if longest is not None and longest < max(size, record + _BESIDES):
            raise NoRoom(
                f"no file may be longer than {longest:,} bytes here (ulimit -f), {name} may take {size:,}", errno.EFBIG
            )
        if free is not None and free < size + self._promised + MARGIN:
            under_way = f" beside {self._promised:,} of those that are under way" if self._promised else ""
            raise NoRoom(
                f"{self._folder} has room for {free:,} bytes more; {name} may take {size:,}{under_way}", errno.ENOSPC
            )
