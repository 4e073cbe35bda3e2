"""Writing files so that what stands under a final name is whole."""

import os
import secrets
from pathlib import Path

from cloudvid.errors import OutputError


def write_file(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all: a new name in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OutputError: it cannot be written; what stood there before still does.
    """
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(half, path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    return path
