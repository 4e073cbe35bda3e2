"""Files that are written as a whole or not at all, and their digests."""

import errno
import hashlib
import os
import re
import resource
import secrets
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")


class Disk:
    """The system calls that storing files rests on; tests pass one that fails."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file (never through a link; a new one gets the permissions that the umask leaves) or a folder."""
        follow = 0 if flags & os.O_DIRECTORY else os.O_NOFOLLOW
        return os.open(path, flags | os.O_CLOEXEC | follow, 0o666)

    def write(self, handle: int, data: memoryview) -> int:
        """Write some of the data. Returns the number of bytes written."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        """Flush a file or folder to the disk."""
        os.fsync(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file atomically."""
        os.replace(source, target)

    def free(self, folder: Path) -> int | None:
        """Free bytes in a folder; None if the file system does not say."""
        try:
            told = os.statvfs(folder)
        except OSError:
            return None
        return told.f_bavail * told.f_frsize if told.f_blocks else None

    def longest(self) -> int | None:
        """Largest file that this process may write, in bytes; None for no limit."""
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        return None if limit == resource.RLIM_INFINITY else limit


DISK = Disk()


def write_all(handle: int, data: bytes, disk: Disk) -> None:
    """Write all of the data and wait until it is on the disk."""
    left = memoryview(data)
    while left:
        left = left[disk.write(handle, left) :]
    _flush(handle, disk)


def _flush(handle: int, disk: Disk) -> None:
    """Wait until a file or folder is on the disk, if the file system offers that: network and shared ones may not."""
    try:
        disk.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_file(path: Path, data: bytes, disk: Disk = DISK) -> Path:
    """Write a file as a whole or not at all: a temporary name in its folder, fsync, rename, fsync of the folder.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    _make_folder(path.parent)
    try:
        _write_once(path, data, disk)
    except FileNotFoundError:  # where file locks do nothing, another process may have removed the temporary file
        _write_once(path, data, disk)
    folder = disk.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _flush(folder, disk)
    finally:
        os.close(folder)
    return path


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written later, and return if it can be written there.

    Raises:
        OSError: it cannot.
    """
    _make_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    temporary = _temporary(path)
    os.close(DISK.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file has its name
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _write_once(path: Path, data: bytes, disk: Disk) -> None:
    temporary = _temporary(path)
    try:
        handle = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_all(handle, data, disk)
        finally:
            os.close(handle)
        disk.replace(temporary, path)
    except BaseException:  # Ctrl-C included
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is always read as a whole, without waiting for the disk: for what a crash may take."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:  # Ctrl-C included
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were cut off."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def sha256(path: Path) -> str:
    """A file's digest, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
