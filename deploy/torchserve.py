"""A TorchServe process group: started, found again, and stopped as a whole.

Everything that belongs to a running server is in its run folder: log, key file, process id, TMPDIR. It has ports and a
process group of its own, so it works beside another TorchServe on the same host.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

import psutil

from cloudvid_schema.ports import PORTS
from cloudvid_schema.processes import taken_ports
from cloudvid_schema.run_folder import RECORD, read_record, remove_pointer
from deploy import ROOT, STAGES, DeployError
from deploy.archives import check
from deploy.environment import inherited
from deploy.java import java_home

RUN_DIR = ROOT / ".run"
"""The run folder of `make start`."""
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in (".", "client", "handlers"))
"""For programs of this repository that start in another folder."""
_STOP_SECONDS = 20
_OLD_LOGS = 5  # of each kind, of earlier starts: server.log.1 and so on
_SOCKET_PATH = 100  # bytes; Linux allows 108 for a Unix socket, including `/.ts.sock.9000`


def free_port() -> int:
    """A port that is free together with the five above it."""
    # Below the range from which the kernel takes ports for outgoing connections.
    for port in random.sample(range(20_000, 32_000, 10), 200):
        if not taken_ports(range(port, port + PORTS)):
            return port
    raise DeployError("there are no six consecutive free ports on 127.0.0.1")


@dataclass(frozen=True)
class Server:
    """A TorchServe: its folder, its first port and its stages."""

    run_dir: Path
    """Absolute."""
    port: int
    stages: tuple[str, ...] = STAGES

    @property
    def url(self) -> str:
        """Address of the endpoints; the management API is one port above."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Output of TorchServe and its workers."""
        return self.run_dir / "server.log"

    @property
    def pid_file(self) -> Path:
        """Process group and port of the running server."""
        return self.run_dir / RECORD

    def spawn(self, model_store: Path, foreground: bool = False) -> subprocess.Popen[bytes]:
        """Start TorchServe, with the exporter beside it, in a process group of its own.

        Raises:
            DeployError: an archive is missing or has changed, there is no Java, a port is in use, or a server runs in
                this folder already.
        """
        if running := running_in(self.run_dir):
            raise DeployError(f"a server is already running on {running.url} (stop it with `make stop`)")
        for stage in self.stages:
            check(stage, model_store)
        ports = range(self.port, self.port + PORTS)
        if taken := taken_ports(ports):
            span = f"{ports[0]} to {ports[-1]}"
            raise DeployError(f"port {taken[0]} is in use, of {span}; choose others with PORT= (--port)")
        java = java_home()
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in ("key_file.json", RECORD):
            (self.run_dir / old).unlink(missing_ok=True)
        self.keep_logs()
        command = [sys.executable, "-m", "deploy.exporter", "--port", str(self.port)]
        command += [f"--stage={stage}" for stage in self.stages]
        command += ["--", str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground"]
        command += ["--no-config-snapshots", "--ts-config", str(ROOT / "config.properties")]
        command += ["--model-store", str(model_store.resolve())]
        command += ["--models", *(f"{stage}={stage}.mar" for stage in self.stages)]
        with signals_kept() as signals:  # delivered too early, one would leave a server that cannot be found
            process = subprocess.Popen(
                command,
                cwd=self.run_dir,
                env=self._environment(java),
                stdin=subprocess.DEVNULL,
                stdout=None if foreground else self.log.open("wb"),
                stderr=None if foreground else subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,  # TorchServe writes the key file before it restricts its mode
            )
            self.pid_file.write_text(json.dumps({"pid": process.pid, "port": self.port}))
        try:
            for number in signals:
                signal.raise_signal(number)
        except BaseException:  # the interrupt that a signal became: no caller has the server yet
            self.stop()
            raise
        return process

    def keep_logs(self) -> None:
        """Rename the logs of the start before: they may tell of a death, and are not about this start."""
        for log in (self.log, self.run_dir / "logs/model_log.log"):
            if log.exists():
                RotatingFileHandler(log, backupCount=_OLD_LOGS, delay=True).doRollover()

    def _environment(self, java: Path) -> dict[str, str]:
        base = "http://127.0.0.1:{}"
        return {
            # On a CPU the workers share the cores: threads that spin while waiting double the time of a small batch.
            "OMP_WAIT_POLICY": "PASSIVE",
            **inherited(os.environ),
            "PYTHONPATH": PYTHONPATH,  # the exporter's; it removes it, since it would take precedence over the archives
            "JAVA_HOME": str(java),
            "TMPDIR": str(self._tmp_dir()),
            "TEMP": str(self._tmp_dir()),  # TorchServe passes this on to Java
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
        """The server's TMPDIR, which contains its workers' sockets: a link to a shorter path if it is too long."""
        folder = self.run_dir / "tmp"
        if len(os.fsencode(folder)) <= _SOCKET_PATH - len("/.ts.sock.9999"):
            folder.mkdir(exist_ok=True, mode=0o700)
            return folder
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            folder.symlink_to(tempfile.mkdtemp(prefix="cloudvid-", dir="/tmp"))
        return folder.readlink()

    def listens(self) -> bool:
        """Whether the management API accepts connections and the keys exist."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port + 1)) == 0 and (self.run_dir / "key_file.json").is_file()

    def last_words(self, code: int) -> str:
        """A message about a server that ended by itself."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return f"the server ended with {code}; the end of {self.log}:\n{tail}"

    def stop(self) -> bool:
        """Whether the server was running; all of its processes are stopped, first by SIGTERM, then by SIGKILL."""
        if not (record := read_record(self.run_dir)):
            return False
        pid = record.pid
        alive = running = group(pid, self.run_dir)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
                alive = alive_after(alive, _STOP_SECONDS)
        for old in ("key_file.json", RECORD):
            (self.run_dir / old).unlink(missing_ok=True)
        remove_pointer(self.run_dir)
        tmp = self.run_dir / "tmp"
        if tmp.exists():
            shutil.rmtree(tmp.resolve(), ignore_errors=True)
        if tmp.is_symlink():
            tmp.unlink()
        return bool(running)


def alive_after(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended within so many seconds.

    A process that has ended but was not reaped by init counts as ended: some inits are slow, and some containers have
    none.
    """
    ends = time.monotonic() + seconds
    while (processes := [process for process in processes if _is_alive(process)]) and time.monotonic() < ends:
        time.sleep(0.01)
    return processes


def _is_alive(process: psutil.Process) -> bool:
    try:
        # A main thread that has ended while others keep the memory and the ports looks like a zombie too.
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


@contextlib.contextmanager
def signals_kept() -> Iterator[list[int]]:
    """Put the signals of the block on a list instead of delivering them; what nohup ignores stays ignored."""
    received: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # they interrupt no other
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def group(pid: int, run_dir: Path) -> list[psutil.Process]:
    """The processes of a server's group, if the group still belongs to the server of this run folder."""
    found, belongs = [], False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == pid and _is_alive(process):
                found.append(process)
                belongs = belongs or process.environ().get("LOG_LOCATION") == str(run_dir / "logs")
    return found if belongs else []


def running_in(run_dir: Path) -> Server | None:
    """The server that runs in a run folder, if there is one."""
    record = read_record(run_dir)
    return Server(run_dir, record.port) if record and group(record.pid, run_dir) else None
