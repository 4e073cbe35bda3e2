"""Writing files so that what stands under a final name is whole."""

import os
import re
import resource
import secrets
from contextlib import suppress
from pathlib import Path

from cloudvid.errors import OutputError

_HALF = re.compile(r"\..+\.[0-9a-f]{8}\.part")


class Disk:
    """The operations that storing rests on, one system call each; a test passes one that fails."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, never through a link, for a new one with the permissions that the umask leaves; or a folder."""
        follow = 0 if flags & os.O_DIRECTORY else os.O_NOFOLLOW
        return os.open(path, flags | os.O_CLOEXEC | follow, 0o666)

    def write(self, handle: int, data: memoryview) -> int:
        """Write a part of the data; how many bytes is returned."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file its final name, in one step."""
        os.replace(source, target)

    def free(self, folder: Path) -> int | None:
        """Bytes that can be written in a folder; None where the file system does not say."""
        try:
            told = os.statvfs(folder)
        except OSError:
            return None
        return told.f_bavail * told.f_frsize if told.f_blocks else None

    def longest(self) -> int | None:
        """Bytes that a file of this process may have; None for no limit."""
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        return None if limit == resource.RLIM_INFINITY else limit


DISK = Disk()


def write_all(handle: int, data: bytes, disk: Disk) -> None:
    """Write all of it, however many calls that takes, and wait until it is on the disk."""
    left = memoryview(data)
    while left:
        left = left[disk.write(handle, left) :]
    disk.fsync(handle)


def write_file(path: Path, data: bytes, disk: Disk = DISK) -> Path:
    """Write a file whole or not at all: a new name in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OutputError: it cannot be written; what stood there before still does.
    """
    if not path.name:
        raise OutputError(f"{path} is no name for a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_once(path, data, disk)
        except FileNotFoundError:  # where locks lie, another cloudvid may have swept the half file away
            _write_once(path, data, disk)
        sync_folder(path.parent, disk)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", error.errno) from None
    return path


def _write_once(path: Path, data: bytes, disk: Disk) -> None:
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = disk.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(handle, data, disk)
        finally:
            os.close(handle)
        disk.replace(half, path)
    except BaseException:  # Ctrl-C too: no half file stays
        half.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path, disk: Disk) -> None:
    """Wait until the folder's names are on the disk."""
    handle = disk.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.fsync(handle)
    finally:
        os.close(handle)


def remove_halves(folder: Path) -> None:
    """Remove what a write that was cut off has left."""
    for path in folder.iterdir():
        if _HALF.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
