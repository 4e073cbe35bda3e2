"""One TorchServe process group: started, found again, ended as a whole.

All that belongs to a running server lies in its run folder: log, key file, pid, TMPDIR. It has ports of its own, so
that it works beside another TorchServe on the same host, and a process group of its own, by which it is stopped.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import archives
import psutil
from exporter import EXPORTER
from java import java_home

STAGES = ("t2i", "i2v")
PORTS = EXPORTER + 1
"""In a row: inference, management, metrics, two for gRPC, and the exporter's."""
_ROOT = Path(__file__).resolve().parent.parent
_STOP_SECONDS = 20
_SOCKET_PATH = 100  # bytes; Linux allows 108 for a Unix socket, of which `/.ts.sock.9000` takes some
# Its environment decides how TorchServe starts: what a user's shell may hold for another one is left out.
_FOREIGN = re.compile(r"^(TS_|PYTHONPATH$|LOG_LOCATION$|METRICS_LOCATION$|TEMP$|TMP$)")


class ServerError(RuntimeError):
    """The server cannot be started or stopped; the message says why and what to do."""


def _taken(ports: Sequence[int]) -> int | None:
    """The first of these ports of this host that something holds."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return port
    return None


def free_port() -> int:
    """A port that is free together with the five above it."""
    # Below the range from which the kernel takes ports for outgoing connections: those come and go.
    for port in random.sample(range(20_000, 32_000, 10), 200):
        if _taken(range(port, port + PORTS)) is None:
            return port
    raise ServerError("no six free ports in a row on 127.0.0.1")


@dataclass(frozen=True)
class Server:
    """One TorchServe: where it lies and where it listens."""

    run_dir: Path
    """Absolute."""
    port: int
    stages: tuple[str, ...] = STAGES
    """Which it serves."""

    @property
    def url(self) -> str:
        """Address of the endpoints; the management API is one port above."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What TorchServe and its workers print."""
        return self.run_dir / "server.log"

    @property
    def pid_file(self) -> Path:
        """Process group and port of the server, for whoever stops it."""
        return self.run_dir / "server.json"

    def spawn(self, model_store: Path, foreground: bool = False) -> subprocess.Popen[bytes]:
        """Start TorchServe, with the exporter beside it, in a process group of its own.

        Raises:
            ServerError: no Java, no archives or changed ones, a port that is taken, or a server that runs already.
        """
        if running := running_in(self.run_dir):
            raise ServerError(f"a server runs already on {running.url} (make stop ends it)")
        digests = archives.listed(model_store)
        for stage in self.stages:
            archive = model_store / f"{stage}.mar"
            if not archive.is_file():
                raise ServerError(f"{archive} is not there; `make archives` builds it")
            if archives.sha256(archive) != digests.get(archive.name):
                raise ServerError(
                    f"{archive} is not the one that was built: its sha256 is not in {archives.LIST} beside it;"
                    f" `{sys.executable} {_ROOT / 'deploy/archives.py'} {model_store}` builds both anew"
                )
        if taken := _taken(range(self.port, self.port + PORTS)):
            last = self.port + PORTS - 1
            raise ServerError(f"port {taken} is taken, of {self.port} to {last}; choose others with PORT= (--port)")
        java = java_home()
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in ("key_file.json", "server.json"):
            (self.run_dir / old).unlink(missing_ok=True)
        # fmt: off
        command = [
            sys.executable, str(_ROOT / "deploy/exporter.py"), "--port", str(self.port),
            *(f"--stage={stage}" for stage in self.stages), "--",
            str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground", "--no-config-snapshots",
            "--ts-config", str(_ROOT / "config.properties"), "--model-store", str(model_store.resolve()),
            "--models", *(f"{stage}={stage}.mar" for stage in self.stages),
        ]
        # fmt: on
        with _signals_deferred():  # between the two a signal would leave a server that nobody knows of
            process = self._popen(command, java, foreground)
            self.pid_file.write_text(json.dumps({"pid": process.pid, "port": self.port}))
        return process

    def _popen(self, command: list[str], java: Path, foreground: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.run_dir,
            env=self._environment(java),
            stdin=subprocess.DEVNULL,
            stdout=None if foreground else self.log.open("wb"),
            stderr=None if foreground else subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,  # TorchServe writes the key file before it restricts it
        )

    def _environment(self, java: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        base = "http://127.0.0.1:{}"
        return {
            # On a CPU the workers share the cores: threads that spin while they wait double the time of a small batch.
            "OMP_WAIT_POLICY": "PASSIVE",
            **kept,
            "JAVA_HOME": str(java),
            "TMPDIR": str(self._tmp_dir()),
            "TEMP": str(self._tmp_dir()),  # what TorchServe passes on to Java
            "LOG_LOCATION": str(self.run_dir / "logs"),
            "METRICS_LOCATION": str(self.run_dir / "logs"),
            "TS_INFERENCE_ADDRESS": base.format(self.port),
            "TS_MANAGEMENT_ADDRESS": base.format(self.port + 1),
            "TS_METRICS_ADDRESS": base.format(self.port + 2),
            "TS_GRPC_INFERENCE_ADDRESS": "127.0.0.1",
            "TS_GRPC_MANAGEMENT_ADDRESS": "127.0.0.1",
            "TS_GRPC_INFERENCE_PORT": str(self.port + 3),
            "TS_GRPC_MANAGEMENT_PORT": str(self.port + 4),
            "PYTHONUNBUFFERED": "1",
        }

    def _tmp_dir(self) -> Path:
        """The server's TMPDIR, which holds its workers' sockets: short enough for their path, else a link to such."""
        folder = self.run_dir / "tmp"
        if len(os.fsencode(folder)) <= _SOCKET_PATH - len("/.ts.sock.9999"):
            folder.mkdir(exist_ok=True, mode=0o700)
            return folder
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            folder.symlink_to(tempfile.mkdtemp(prefix="cloudvid-", dir="/tmp"))
        return folder.readlink()

    def listens(self) -> bool:
        """Whether the management API accepts connections and the keys are there."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port + 1)) == 0 and (self.run_dir / "key_file.json").is_file()

    def last_words(self, code: int) -> str:
        """What to say of a server that ended by itself."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return f"the server ended with {code}; the end of {self.log}:\n{tail}"

    def stop(self) -> bool:
        """End every process of the server's group: asked first, then killed.

        Returns:
            Whether one was running.
        """
        try:
            pid = json.loads(self.pid_file.read_text())["pid"]
        except (OSError, ValueError, KeyError):
            return False
        alive = running = group(pid, self.run_dir)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, sign)
                alive = alive_after(alive, _STOP_SECONDS)
        self.pid_file.unlink(missing_ok=True)
        (self.run_dir / "key_file.json").unlink(missing_ok=True)
        tmp = self.run_dir / "tmp"
        if tmp.exists():
            shutil.rmtree(tmp.resolve(), ignore_errors=True)
        if tmp.is_symlink():
            tmp.unlink()
        return bool(running)


def alive_after(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended within so many seconds.

    One that ended and waits for init to reap it has ended: some inits do so late, and in a container perhaps never.
    """
    ends = time.monotonic() + seconds
    left = list(processes)
    while (left := [process for process in left if _is_alive(process)]) and time.monotonic() < ends:
        time.sleep(0.01)
    return left


def _is_alive(process: psutil.Process) -> bool:
    try:
        # A main thread that has ended while others still hold the memory and the ports looks like a zombie too.
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Signals that would interrupt the block arrive after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # they interrupt the main thread alone
        return
    came: list[int] = []
    signs = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {sign: signal.signal(sign, lambda number, frame: came.append(number)) for sign in signs}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
        for number in came:
            signal.raise_signal(number)


def group(pid: int, run_dir: Path) -> list[psutil.Process]:
    """The processes of a server's group, if that group is still the server of this run folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == pid and _is_alive(process):
                found.append(process)
    ours = str(run_dir / "logs")
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LOG_LOCATION") == ours:
                return found
    return []


def running_in(run_dir: Path) -> Server | None:
    """The server that runs in a run folder, if one does."""
    try:
        record = json.loads((run_dir / "server.json").read_text())
        return Server(run_dir, record["port"]) if group(record["pid"], run_dir) else None
    except (OSError, ValueError, KeyError):
        return None
