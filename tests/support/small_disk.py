"""Small file systems, which last as long as a process that holds them: no other process sees them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.waiting import until


def _unshared() -> list[str]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--mount", "--propagation", "private"]


def obstacle() -> str:
    """Why there can be no small file systems here; empty where there can."""
    attempt = [*_unshared(), "mount", "-t", "tmpfs", "-o", "size=4096", "none", "/tmp"]
    try:
        tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return tried.stderr.strip() if tried.returncode else ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of so many bytes, seen through the only process that has it and ending with that process."""
    place = folder / "small"
    place.mkdir()
    script = (
        f'mount -t tmpfs -o size={size} none "$0" && : > "$0/.there" && read _ && '
        'mount -o remount,size=64m "$0" && : > "$0/.large" && read _'
    )
    holder = subprocess.Popen([*_unshared(), "sh", "-c", script, str(place)], stdin=subprocess.PIPE)
    seen = Path(f"/proc/{holder.pid}/root") / place.relative_to("/")

    def enlarge() -> None:
        assert holder.stdin is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        until((seen / ".large").exists, "the file system is larger")

    try:
        until((seen / ".there").exists, "the file system is there")
        yield seen, enlarge
    finally:
        holder.kill()
        holder.communicate()
