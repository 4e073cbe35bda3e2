"""The record of a batch in its output folder: `manifest.jsonl`, one line per scene.

A line is appended once the files that it names are on the disk, so a crash loses at most the line. A line that was cut
off by a crash is ignored. If a scene has several lines, the last one counts; opening and closing a batch reduce the
file to one line per scene. It holds no times, so the same batch always produces the same bytes.
"""

import fcntl
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cloudvid.endpoints.answers import writing
from cloudvid.endpoints.errors import FolderInUse, UnusableFolder
from cloudvid_schema.files import DISK, Disk, remove_leftovers, write_all, write_file
from cloudvid_schema.protocol import ImageToVideoRequest, Request, Stage, TextToImageRequest

NAME = "manifest.jsonl"
_LOCK = ".cloudvid.lock"


class Entry(BaseModel):
    """What one stage made of a scene."""

    model_config = ConfigDict(frozen=True)

    file: str
    size: int
    """Bytes."""
    sha256: str
    seed: int
    model: str
    warnings: tuple[str, ...] | None = None
    """What the request asked for and the model did not do, if anything."""
    picture_sha256: str | None = None
    """For a clip: the picture that it was made from."""
    request_sha256: str
    """Digest of the request; see `request_digest`."""
    request: dict[str, Any]
    """The whole request with its defaults."""

    def is_of(self, digest: str) -> bool:
        """Whether the file was made from the request with this digest.

        The manifests of the first versions have digests over the defaults too; for those the request itself decides.
        """
        return digest in (self.request_sha256, _digest(self.request))


class Record(BaseModel):
    """A scene's line."""

    model_config = ConfigDict(frozen=True)

    id: str
    t2i: Entry | None = None
    i2v: Entry | None = None

    def entry(self, stage: Stage) -> Entry | None:
        """The entry of one stage, if there is one."""
        return self.t2i if stage is Stage.T2I else self.i2v


def canonical(request: Request) -> dict[str, Any]:
    """A request with all its parameters as plain JSON values."""
    return request.model_dump(mode="json")


def request_digest(request: Request) -> str:
    """sha256 over everything in a request that differs from the defaults.

    So a parameter that is added later, with a default, changes no digest; and a default must never change.
    """
    return _digest(canonical(request))


def _digest(request: Mapping[str, Any]) -> str:
    defaults = _DEFAULTS["prompt" in request]
    given = {name: value for name, value in request.items() if name not in defaults or value != defaults[name]}
    return hashlib.sha256(json.dumps(given, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _defaults(model: type[Request]) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items() if not field.is_required()}


_DEFAULTS = {True: _defaults(TextToImageRequest), False: _defaults(ImageToVideoRequest)}
"""By whether a request has a prompt."""


class Manifest:
    """An output folder's records, locked by one batch.

    Args:
        folder: created if it does not exist.
        disk: how files are written.

    Raises:
        FolderInUse: another cloudvid process uses the folder. The lock is a courtesy: on file systems on which it does
            not work, two batches still do each other no harm.
        UnusableFolder: it cannot be created or written to.
    """

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self.path = folder / NAME
        self._disk = disk
        self._added: set[str] = set()
        self._writing = threading.Lock()
        self._is_closed = False
        self._begins_line = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UnusableFolder(f"{folder} cannot be used: {error.strerror}", error.errno) from None
        try:
            self._take_lock(folder)
            remove_leftovers(folder)
            self.records, is_tidy = read_records(folder)
            if not is_tidy:
                self._rewrite(self.records.values())
        except BaseException:  # Ctrl-C included: release the lock
            os.close(self._lock)
            raise

    def _take_lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 200).decode(errors="replace").strip()
            raise FolderInUse(f"another cloudvid works in {folder} ({holder or 'just started'})") from None
        except OSError:
            return  # no locks on this file system
        with suppress(OSError):  # who holds the lock is a courtesy, too
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def add(self, record: Record) -> None:
        """Write a scene's record to the disk.

        Raises:
            OutputError: it cannot be written; the files that it names will be made again.
        """
        line = _line(record)
        with self._writing, writing(self.path):
            if self._is_closed:
                return  # the batch has ended: the next one will judge this file
            # Opened every time: without working locks, another cloudvid may have replaced the file.
            handle = self._disk.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                if not self._begins_line:
                    line = b"\n" + line  # a previous write was cut off: its line ends here
                self._begins_line = False
                write_all(handle, line, self._disk)
                self._begins_line = True
            finally:
                os.close(handle)
            self.records[record.id] = record
            self._added.add(record.id)

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
                on_disk, _ = read_records(self.path.parent)
                records = {**on_disk, **{scene: self.records[scene] for scene in self._added}}
                first = [scene for scene in order if scene in records]
                rest = sorted(records.keys() - set(first))
                self._rewrite(records[scene] for scene in [*first, *rest])
        finally:
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)

    def _rewrite(self, records: Iterable[Record]) -> None:
        with writing(self.path):
            write_file(self.path, b"".join(map(_line, records)), self._disk)


def _line(record: Record) -> bytes:
    return record.model_dump_json(exclude_none=True).encode() + b"\n"


def read_records(folder: Path) -> tuple[dict[str, Record], bool]:
    """The records of a folder by scene, and whether the file has exactly one complete line per scene.

    Raises:
        UnusableFolder: the folder is a file, or the manifest exists but cannot be read.
    """
    records: dict[str, Record] = {}
    is_tidy = True
    try:
        with (folder / NAME).open("rb") as stream:
            for line in stream:
                try:
                    record = Record.model_validate_json(line)
                except ValidationError:
                    is_tidy = False
                    continue
                is_tidy = is_tidy and record.id not in records and line.endswith(b"\n")
                records[record.id] = record
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnusableFolder(f"{folder / NAME} cannot be read: {error.strerror}", error.errno) from None
    return records, is_tidy
