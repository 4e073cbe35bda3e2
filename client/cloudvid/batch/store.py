"""An output folder: its files, its manifest, and the space that is left for them.

A line is appended to the manifest once the files that it names are on the disk, so a crash loses at most the line.
Opening and closing a batch reduce the manifest to one line per scene.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cloudvid.batch.manifest import MANIFEST, Entry, Failure, Record, line_of, read_records
from cloudvid.batch.progress import Asked
from cloudvid.endpoints.answers import Generated, plain, writing
from cloudvid.endpoints.errors import FolderInUse, NoRoom, OutputError, PictureChanged, UnusableFolder
from cloudvid_schema.files import DISK, Disk, remove_leftovers, write_all, write_file
from cloudvid_schema.parameters import TextToImageOptions
from cloudvid_schema.protocol import Request, Stage, TextToImageRequest
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size

_OVERHEAD = 2**16  # bytes: a file's recipe and container; a line of the manifest
_LOCK = ".cloudvid.lock"
MARGIN = 2**20
"""Bytes reserved for the manifest and the gallery."""


class Store:
    """An output folder that one batch has open. It is created if it does not exist.

    Raises:
        FolderInUse: another cloudvid process uses the folder. The lock is a courtesy: on file systems on which it does
            not work, two batches still do each other no harm.
        UnusableFolder: it cannot be created or written to.
    """

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self._path = folder / MANIFEST
        self.folder, self._disk = folder, disk
        self.batch = secrets.token_hex(6)
        """The beginning of its jobs' ids."""
        self.left_behind: str | None = None
        """The same of a batch that was killed here, whose results are no longer wanted."""
        self._room = threading.Lock()
        self._promised = 0
        self._added: dict[str, Record] = {}
        self._writing = threading.Lock()
        self._is_closed = False
        self._begins_line = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UnusableFolder(f"{folder} cannot be used: {error.strerror}", error.errno) from None
        try:
            self._take_lock()
            remove_leftovers(folder)
            self.records, is_tidy = read_records(folder)
            if not is_tidy:
                self.write(MANIFEST, b"".join(map(line_of, self.records.values())))
        except BaseException:  # Ctrl-C included: release the lock
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = plain(os.read(self._lock, 200).decode(errors="replace").partition("\n")[0])
            raise FolderInUse(f"another cloudvid works in {self.folder} ({holder or 'just started'})") from None
        except OSError:
            return  # no locks on this file system
        with suppress(OSError):  # who holds the lock is a courtesy, too
            if killed := re.search(rb"\njobs ([0-9a-f]{12})$", os.read(self._lock, 200)):
                self.left_behind = killed[1].decode()
            os.ftruncate(self._lock, 0)
            holder = f"process {os.getpid()} on {socket.gethostname()}\njobs {self.batch}"
            os.pwrite(self._lock, holder.encode(), 0)

    def record(self, scene: str) -> Record:
        """What is on record about a scene; an empty record if there is nothing."""
        return self.records.get(scene) or Record(id=scene)

    def picture(self, scene: str) -> bytes:
        """A scene's picture, which is on record.

        Raises:
            PictureChanged: the file is missing or has changed.
        """
        entry = self.record(scene).t2i
        if entry is None:
            raise PictureChanged(f"{scene} has no picture")
        path = self.folder / entry.file
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PictureChanged(f"{path} has changed since it was made")
        return data

    def save(self, asked: Asked, result: Generated) -> Path:
        """Write a file, then its record: what the manifest names is always on the disk.

        Raises:
            OutputError: the file or the record cannot be written.
        """
        path = self.write(asked.file, result.data)
        record = self.record(asked.scene.id)
        picture = record.t2i if asked.stage is Stage.I2V else None
        entry = Entry(
            file=path.name,
            size=len(result.data),
            sha256=result.sha256,
            seed=result.seed,
            model=result.model,
            warnings=result.warnings or None,
            picture_sha256=picture.sha256 if picture else None,
            request_sha256=asked.digest,
            request=asked.request.model_dump(mode="json"),
        )
        update = {asked.stage: entry, "failure": None}
        self.add(record.model_copy(update=update))  # a clip of another picture stays as such
        return path

    def fail(self, scene: str, failure: Failure) -> None:
        """Keep on record why a scene has failed or was cancelled, as far as that is possible."""
        with suppress(OutputError):
            self.add(self.record(scene).model_copy(update={"failure": failure}))

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of the batch.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.folder / name):
            return write_file(self.folder / name, data, self._disk)

    @contextmanager
    def room_for(self, name: str, size: int) -> Iterator[None]:
        """Reserve space for a file during the block, so that a GPU never works on what could not be stored.

        Raises:
            NoRoom: there is not enough space, given what is reserved for other files.
        """
        with self._room:
            free, longest = self._disk.free(self.folder), self._disk.longest()
            record = self._path.stat().st_size if self._path.is_file() else 0
            if longest is not None and longest < max(size, record + _OVERHEAD):
                limit = f"files are limited to {longest:,} bytes here (ulimit -f)"
                raise NoRoom(f"{name} may need {size:,} bytes, but {limit}", errno.EFBIG)
            if free is not None and free < size + self._promised + MARGIN:
                others = f" and files in progress {self._promised:,}" if self._promised else ""
                needs = f"{name} may need {size:,} bytes{others}, and the manifest and the gallery {MARGIN:,}"
                text = f"{needs}, but {self.folder} has only {free:,} bytes left"
                raise NoRoom(text, errno.ENOSPC)
            self._promised += size
        try:
            yield
        finally:
            with self._room:
                self._promised -= size

    def add(self, record: Record) -> None:
        """Write a scene's record to the disk.

        Raises:
            OutputError: it cannot be written; the files that it names will be made again.
        """
        line = line_of(record)
        with self._writing, writing(self._path):
            if self._is_closed:
                return  # the batch has ended: the next one will judge this file
            # Opened every time: without working locks, another cloudvid may have replaced the file.
            handle = self._disk.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                if not self._begins_line:
                    line = b"\n" + line  # a previous write was cut off: its line ends here
                self._begins_line = False
                write_all(handle, line, self._disk)
                self._begins_line = True
            finally:
                os.close(handle)
            self.records[record.id] = self._added[record.id] = record

    def close(self, order: Iterable[str] | None = None) -> None:
        """Release the folder, once. With the scenes' order, also sort the file and reduce it to one line per scene.

        Raises:
            OutputError: the file cannot be written; the longer one remains.
        """
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            if order is not None:
                # Without working locks, another batch may have recorded more about scenes that this one did not touch.
                on_disk, _ = read_records(self.folder)
                records = on_disk | self._added
                ordered = dict.fromkeys([*order, *sorted(records)])
                self.write(MANIFEST, b"".join(line_of(records[scene]) for scene in ordered if scene in records))
        finally:
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)


def pixels(request: Request, picture: TextToImageOptions, frames: int = DEFAULT_FRAMES) -> int:
    """Number of pixels of a picture or of all frames of a clip, given the parameters of the scene's picture."""
    if isinstance(request, TextToImageRequest):
        return request.width * request.height
    (width, height), _ = clip_size((picture.width, picture.height), request.width, request.height)
    return width * height * (request.num_frames or frames)


def most_bytes(request: Request, picture: TextToImageOptions) -> int:
    """Upper bound of a file's size in bytes (noise does not compress), given the parameters of the scene's picture."""
    bytes_a_pixel = 3 * 1.01 if isinstance(request, TextToImageRequest) else 1.5  # RGB; yuv420p
    return round(pixels(request, picture) * bytes_a_pixel) + _OVERHEAD
