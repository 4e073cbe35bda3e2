"""The server that `make start` runs below the current folder: its address, its processes and its log."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

RUN_DIR = Path(".run")
"""Where `make start` keeps everything that belongs to its server."""
RUN_KEY_FILE = RUN_DIR / "key_file.json"
_LOG_BYTES = 2**18  # read from the end of the log
# The last line of a traceback. TorchServe's own error follows it and only has a number.
_ERROR = re.compile(r"MODEL_LOG - (?!RuntimeError: \d{3} - )(?P<error>(?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)$")


def server_process(run_dir: Path) -> tuple[int, int] | None:
    """Process id and first port of the server that runs from this folder, if there is one."""
    try:
        record = json.loads((run_dir / "server.json").read_text())
        pid, port = int(record["pid"]), int(record["port"])
        with suppress(PermissionError):  # another user's process
            os.kill(pid, 0)
        return pid, port
    except (OSError, ValueError, LookupError, TypeError):
        return None


def local_address() -> str | None:
    """Address of the server that runs from this folder, if there is one."""
    found = server_process(RUN_DIR)
    return f"http://127.0.0.1:{found[1]}" if found else None


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
    try:
        size = log.stat().st_size
        with log.open("rb") as stream:
            stream.seek(max(since if since <= size else 0, size - _LOG_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    name = re.compile(rf" W-{re.escape(worker) or '[0-9]+'}-{stage}_\S*-std(out|err) ")
    found = [match["error"] for line in lines if name.search(line) and (match := _ERROR.search(line))]
    if not found:
        return None
    kind, colon, text = found[-1].partition(":")
    return kind.rpartition(".")[2] + colon + text  # without the exception's module
