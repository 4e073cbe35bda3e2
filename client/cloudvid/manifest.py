"""The record of a batch in its output folder: `manifest.jsonl`, one line a scene.

A line is appended once the files that it names are on the disk, so a crash loses at most the line, never its truth. A
line that a crash has cut is passed over. Of several lines of one scene the last counts; opening and closing a batch
rewrite the file to one line a scene. It holds no times, so the same batch gives the same bytes.
"""

import fcntl
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cloudvid.errors import FolderInUse, OutputError, UnusableFolder
from cloudvid.outputs import DISK, Disk, remove_halves, write_all, write_file
from cloudvid_schema.protocol import Request, Stage

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
    """What the request asked for and the model did not do, where there was anything."""
    picture_sha256: str | None = None
    """Of a clip: the picture that it was made from."""
    request_sha256: str
    request: dict[str, Any]
    """The canonical request: every parameter, with its defaults."""


class Record(BaseModel):
    """One scene's line."""

    model_config = ConfigDict(frozen=True)

    id: str
    t2i: Entry | None = None
    i2v: Entry | None = None

    def entry(self, stage: Stage) -> Entry | None:
        """What is known of one stage."""
        return self.t2i if stage is Stage.T2I else self.i2v


def canonical(request: Request) -> dict[str, Any]:
    """A request with every parameter, for the record."""
    return request.model_dump(mode="json")


def request_digest(request: Request) -> str:
    """sha256 of a request in canonical form: equal requests, and only those, have equal digests."""
    text = json.dumps(canonical(request), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str | None:
    """sha256 of a file, or None where there is none that can be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


class Manifest:
    """An output folder's records, held open by one batch.

    Args:
        folder: made if it is not there.
        disk: how files are written.

    Raises:
        FolderInUse: another cloudvid holds the folder. The lock is a courtesy: where it does not work (some network
            file systems), two batches still do each other no damage.
        UnusableFolder: it cannot be made, or written to.
    """

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self._path = folder / NAME
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
            remove_halves(folder)
            self.records, is_tidy = read_records(folder)
            if not is_tidy:
                self._rewrite(self.records.values())
        except BaseException:  # Ctrl-C too: the lock goes with whatever ended this
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
        with suppress(OSError):  # who holds the lock is said as a courtesy too
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def add(self, record: Record) -> None:
        """Put a scene's record on the disk.

        Raises:
            OutputError: it cannot be written; the files that it names will be made again.
        """
        line = _line(record)
        with self._writing:
            try:
                if self._is_closed:
                    return  # the batch has ended: what this file is will be found out by the next one
                # Opened anew each time: where locks lie, another cloudvid may have put a new file in its place.
                handle = self._disk.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                try:
                    if not self._begins_line:
                        line = b"\n" + line  # a write before this one was cut: its line ends here
                    self._begins_line = False
                    write_all(handle, line, self._disk)
                    self._begins_line = True
                finally:
                    os.close(handle)
            except OSError as error:
                raise OutputError(f"{self._path} cannot be written: {error.strerror}", error.errno) from None
            self.records[record.id] = record
            self._added.add(record.id)

    def close(self, order: Iterable[str] | None = None) -> None:
        """Let go of the folder, once; with the scenes' order the file is put into it, one line a scene.

        Raises:
            OutputError: the file cannot be written; the longer one stays.
        """
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            if order is not None:
                # Of scenes that this batch did not touch, another one may know more where locks lie.
                on_disk, _ = read_records(self._path.parent)
                records = {**on_disk, **{scene: self.records[scene] for scene in self._added}}
                first = [scene for scene in order if scene in records]
                rest = sorted(records.keys() - set(first))
                self._rewrite(records[scene] for scene in [*first, *rest])
        finally:
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)

    def _rewrite(self, records: Iterable[Record]) -> None:
        write_file(self._path, b"".join(map(_line, records)), self._disk)


def _line(record: Record) -> bytes:
    return record.model_dump_json(exclude_none=True).encode() + b"\n"


def read_records(folder: Path) -> tuple[dict[str, Record], bool]:
    """The records of a folder by scene, and whether the file was one whole line a scene.

    Raises:
        UnusableFolder: the folder is a file, or the manifest is there but cannot be read.
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
