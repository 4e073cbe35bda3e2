"""What a server leaves to be found by: its record in its run folder, and a pointer to that folder for its user.

The pointer is `cloudvid/server.json` in the user's configuration folder, so that clients find the server from anywhere.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cloudvid_schema.files import write_file

RECORD = "server.json"


class Record(NamedTuple):
    """Process group and first port of a server that was started and not stopped; it may have died since."""

    pid: int
    port: int


def read_record(run_dir: Path) -> Record | None:
    """The record in a run folder, if there is one."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        record = json.loads((run_dir / RECORD).read_text())
        return Record(int(record["pid"]), int(record["port"]))
    return None


def pointer() -> Path | None:
    """Where the pointer is; None for a user without a home."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))  # noqa: PTH111 - never raises
    return folder / "cloudvid" / RECORD if folder.is_absolute() else None


def read_pointer() -> Path | None:
    """The run folder of the server that this user started last, unless it was stopped."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        if path := pointer():
            return Path(json.loads(path.read_text())["run_dir"])
    return None


def point_to(run_dir: Path) -> None:
    """Leave the pointer.

    Raises:
        OSError: it cannot be written.
    """
    if path := pointer():
        write_file(path, json.dumps({"run_dir": str(run_dir)}).encode())


def remove_pointer(run_dir: Path) -> None:
    """Remove the pointer, if it is to this folder."""
    if (path := pointer()) and read_pointer() == run_dir:
        path.unlink(missing_ok=True)
