"""The server that `make start` runs below the current folder: its address, and what its workers said last."""

import json
import os
import re
from pathlib import Path

RUN_DIR = Path(".run")
"""Where `make start` keeps all that belongs to its server, below the folder that cloudvid is started in."""
RUN_KEY_FILE = RUN_DIR / "key_file.json"
_LOG_BYTES = 2**18  # of the log's end that are looked through
# The last line of a traceback; TorchServe's own, which follows it, says a number alone.
_ERROR = re.compile(r"MODEL_LOG - (?!RuntimeError: \d{3} - )(?P<error>(?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)$")


def server_process(run_dir: Path = RUN_DIR) -> tuple[int, int] | None:
    """Process id and first port of the server that runs from this folder, if one does."""
    try:
        record = json.loads((run_dir / "server.json").read_text())
        pid, port = int(record["pid"]), int(record["port"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it runs, and is another user's
    except OSError:
        return None
    return pid, port


def local_address(run_dir: Path = RUN_DIR) -> str | None:
    """Address of the server that runs from this folder, if one does."""
    found = server_process(run_dir)
    return f"http://127.0.0.1:{found[1]}" if found else None


def resident_bytes(pid: int) -> int | None:
    """Memory that a process of this machine holds; None where there is no such process, or it has ended."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def worker_log(key_file: Path | None) -> Path | None:
    """The log of the workers whose server wrote this key file, where it is on this machine."""
    log = key_file.parent / "logs/model_log.log" if key_file else None
    return log if log and log.is_file() else None


def last_error(log: Path | None, stage: str, worker: str = "", since: int = 0) -> str | None:
    """The last line of the last traceback that a worker wrote, or None where there is none to be had.

    Args:
        log: as `worker_log` gives it.
        stage: whose workers.
        worker: its id as TorchServe counts; empty for any.
        since: size of the log in bytes when it began to matter.
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
    return _without_module(found[-1]) if found else None


def _without_module(error: str) -> str:
    """`cloudvid_stages.settings.SettingsError: text` -> `SettingsError: text`."""
    kind, colon, text = error.partition(":")
    return kind.rpartition(".")[2] + colon + text
