"""An output folder: its files, its manifest, and the space that is left for them."""

import errno
import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudvid.batch.manifest import Entry, Manifest, Record, canonical
from cloudvid.batch.progress import Asked
from cloudvid.endpoints.answers import Generated, writing
from cloudvid.endpoints.errors import NoRoom, PictureChanged
from cloudvid_schema.files import DISK, Disk, write_file
from cloudvid_schema.protocol import Request, Stage, TextToImageRequest
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size

_OVERHEAD = 2**16  # bytes: a file's recipe and container; a line of the manifest
MARGIN = 2**20
"""Bytes reserved for the manifest and the gallery."""


class Store:
    """An output folder that one batch has open.

    Args:
        folder: created if it does not exist.
        disk: how files are written.

    Raises:
        FolderInUse: another cloudvid process uses the folder.
        UnusableFolder: it cannot be created or written to.
    """

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.folder, self.disk = folder, disk
        self._manifest = Manifest(folder, disk)
        self._room = threading.Lock()
        self._promised = 0

    def entry(self, scene: str, stage: Stage) -> Entry | None:
        """What is on record about a stage of a scene."""
        record = self._manifest.records.get(scene)
        return record.entry(stage) if record else None

    def picture(self, entry: Entry) -> bytes:
        """The picture that is on record.

        Raises:
            PictureChanged: the file is missing or has changed.
        """
        path = self.folder / entry.file
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PictureChanged(f"{path} has changed since it was made")
        return data

    def save(self, scene: str, asked: Asked, result: Generated, picture: Entry | None) -> Entry:
        """Write a file, then its record: what the manifest names is always on the disk.

        Args:
            scene: id of the scene.
            asked: the request.
            result: the file.
            picture: for a clip, the entry of the picture that it was made from.

        Raises:
            OutputError: the file or the record cannot be written.
        """
        path = self.folder / asked.file
        with writing(path):
            write_file(path, result.data, self.disk)
        entry = Entry(
            file=path.name,
            size=len(result.data),
            sha256=result.sha256,
            seed=result.seed,
            model=result.model,
            warnings=result.warnings or None,
            picture_sha256=picture.sha256 if picture else None,
            request_sha256=asked.digest,
            request=canonical(asked.request),
        )
        if asked.stage is Stage.I2V:
            record = Record(id=scene, t2i=picture, i2v=entry)
        else:  # a clip of another picture stays on record as such
            record = Record(id=scene, t2i=entry, i2v=self.entry(scene, Stage.I2V))
        self._manifest.add(record)
        return entry

    def write(self, name: str, data: bytes) -> Path:
        """Write another file of the batch.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.folder / name):
            return write_file(self.folder / name, data, self.disk)

    @contextmanager
    def room_for(self, name: str, size: int) -> Iterator[None]:
        """Reserve space for a file during the block, so that a GPU never works on what could not be stored.

        Raises:
            NoRoom: there is not enough space, given what is reserved for other files.
        """
        with self._room:
            self._check_room(name, size)
            self._promised += size
        try:
            yield
        finally:
            with self._room:
                self._promised -= size

    def _check_room(self, name: str, size: int) -> None:
        free, longest = self.disk.free(self.folder), self.disk.longest()
        record = self._manifest.path.stat().st_size if self._manifest.path.is_file() else 0
        if longest is not None and longest < max(size, record + _OVERHEAD):
            limit = f"files are limited to {longest:,} bytes here (ulimit -f)"
            raise NoRoom(f"{name} may need {size:,} bytes, but {limit}", errno.EFBIG)
        if free is not None and free < size + self._promised + MARGIN:
            others = f" and files in progress {self._promised:,}" if self._promised else ""
            text = f"{name} may need {size:,} bytes{others}, but {self.folder} has only {free:,} bytes left"
            raise NoRoom(text, errno.ENOSPC)

    def close(self, order: Iterable[str] | None = None) -> None:
        """Release the folder; with the scenes' order, also sort the manifest.

        Raises:
            OutputError: the manifest cannot be written.
        """
        self._manifest.close(order)


def most_bytes(request: Request, picture: TextToImageRequest) -> int:
    """Upper bound of a file's size: noise, which does not compress.

    Args:
        request: the request of the file.
        picture: the request of the scene's picture.
    """
    if isinstance(request, TextToImageRequest):
        return round(request.width * request.height * 3 * 1.01) + _OVERHEAD
    (width, height), _ = clip_size((picture.width, picture.height), request.width, request.height)
    return (request.num_frames or DEFAULT_FRAMES) * width * height * 3 // 2 + _OVERHEAD  # yuv420p
