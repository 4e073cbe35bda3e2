"""Servers of this machine: the one that runs from the current folder, and the one that this user started last."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from cloudvid.endpoints.connection import is_local
from cloudvid_schema.ports import PORTS
from cloudvid_schema.run_folder import read_pointer, read_record

RUN_DIR = Path(".run")
"""Where `make start` keeps everything that belongs to its server."""
_LOG_BYTES = 2**18  # read from the end of the log
_LAST_LINES = 5
# The last line of a traceback. TorchServe's own error follows it and only has a number.
_ERROR = re.compile(r"MODEL_LOG - (?!RuntimeError: \d{3} - )(?P<error>(?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)$")


@dataclass(frozen=True)
class LocalServer:
    """A server that was started on this machine and not stopped; it may have died since."""

    run_dir: Path
    pid: int
    port: int

    @property
    def url(self) -> str:
        """Address of its endpoints."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def key_file(self) -> Path:
        """TorchServe's keys."""
        return self.run_dir / "key_file.json"

    @property
    def is_alive(self) -> bool:
        """Whether its process exists."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's process
        return True

    def __str__(self) -> str:
        whose = (
            "this folder"
            if self.run_dir.absolute() == RUN_DIR.absolute()
            else f"{self.run_dir}, which this user started last"
        )
        return f"the server of {whose} (port {self.port}, process {self.pid})"

    def death(self) -> str:
        """A sentence about a server that has died; its last entry in a log is when it was last known to live."""
        times = []
        for log in (self.run_dir / "server.log", *self.run_dir.glob("logs/*.log")):
            with suppress(OSError):
                times.append(log.stat().st_mtime)
        since = f" after {datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M:%S}" if times else ""
        return f"{self} died{since}; `make start` starts it again on the same port"

    def last_lines(self) -> tuple[str, ...]:
        """The end of its log."""
        return tuple(tail(self.run_dir / "server.log", _LAST_LINES, without=("ACCESS_LOG", "TS_METRICS")))


def server_in(run_dir: Path) -> LocalServer | None:
    """The server that was started in a run folder and not stopped, if there is one."""
    record = read_record(run_dir)
    return LocalServer(run_dir, *record) if record else None


def local_servers(folder: Path = Path()) -> Iterator[LocalServer]:
    """The server of a folder, by default the current one, then the one that this user started last."""
    here, other = folder / RUN_DIR, read_pointer()
    for run_dir in (here, *([other] if other and other != here.absolute() else [])):
        if server := server_in(run_dir):
            yield server


def key_file_for(url: str) -> Path | None:
    """The key file of the server at an address of this machine, or else the one in this folder, if there is one."""
    for server in local_servers():
        if server.port == urlsplit(url).port:
            return server.key_file
    try:
        return path if (path := RUN_DIR / "key_file.json").is_file() else None
    except PermissionError:  # another user's .run
        return None


def death_at(url: str) -> tuple[str, tuple[str, ...]] | None:
    """If the server that an address belongs to has died: a sentence about it, and the end of its log."""
    for server in local_servers():
        is_its = is_local(url) and urlsplit(url).port in range(server.port, server.port + PORTS)
        if is_its and not server.is_alive:
            return server.death(), server.last_lines()
    return None


def tail(path: Path, lines: int, without: Sequence[str] = ()) -> list[str]:
    """The last lines of a log that are not empty and have none of these words; none if it cannot be read."""
    kept = [line for line in _end(path).splitlines() if line.strip() and not any(word in line for word in without)]
    return kept[-lines:]


def _end(path: Path, since: int = 0) -> str:
    """The end of a log, without so many bytes at its start unless it is shorter; empty if it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(max(since if since <= size else 0, size - _LOG_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process on this machine; None if it does not exist or has ended."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def worker_log(key_file: Path | None) -> Path | None:
    """The workers' log of the server that wrote this key file, if it is on this machine."""
    log = key_file.parent / "logs/model_log.log" if key_file else None
    return log if log and log.is_file() else None


def last_error(log: Path | None, stage: str, worker: str = "", since: int = 0) -> str | None:
    """The last line of the last traceback in a workers' log, or None.

    Args:
        worker: TorchServe's id of one worker; empty for all.
        since: ignore this many bytes at the start of the log.
    """
    if log is None:
        return None
    lines = _end(log, since).splitlines()
    name = re.compile(rf" W-{re.escape(worker) or '[0-9]+'}-{stage}_\S*-std(out|err) ")
    found = [match["error"] for line in lines if name.search(line) and (match := _ERROR.search(line))]
    if not found:
        return None
    kind, colon, text = found[-1].partition(":")
    return kind.rpartition(".")[2] + colon + text  # without the exception's module
