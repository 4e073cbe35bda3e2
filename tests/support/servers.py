"""TorchServe as the tests, the soak and the benchmarks start it: each in its own folder and on its own ports."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from cloudvid import Client, Stage
from deploy import profiles
from deploy.torchserve import STAGES, Server, group
from support.loopback import free_port

READY_SECONDS = 300


@dataclass(frozen=True)
class Configured(Server):
    """A server with more in its environment."""

    settings: Mapping[str, str] = field(default_factory=dict)

    def _environment(self, java: Path) -> dict[str, str]:
        return super()._environment(java) | dict(self.settings)


@dataclass(frozen=True)
class Running:
    """A server that was started."""

    process: Server

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.process.port + 1}"

    @property
    def key_file(self) -> Path:
        return self.process.run_dir / "key_file.json"

    @property
    def environment(self) -> dict[str, str]:
        """Points a command line at this server."""
        return {"CLOUDVID_SERVER": self.url, "CLOUDVID_KEY_FILE": str(self.key_file)}

    def key(self, api: str) -> str:
        """The key of `inference` or `management`."""
        return str(json.loads(self.key_file.read_text())[api]["key"])

    def management_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key('management')}"}

    def pids(self, stage: str) -> set[int]:
        """Process ids of a stage's workers that are ready."""
        answer = requests.get(f"{self.management}/models/{stage}", headers=self.management_headers(), timeout=10)
        return {worker["pid"] for worker in answer.json()[0]["workers"] if worker["status"] == "READY"}

    def client(self, **options: Any) -> Client:
        return Client(self.url, key_file=self.key_file, **options)

    def processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """Those of the JVM and of the workers; a worker's ffmpeg comes and goes."""
        java, workers = [], []
        pid = json.loads(self.process.pid_file.read_text())["pid"]
        for process in group(pid, self.process.run_dir):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if process.name() == "java":
                    java.append(process)
                elif any("model_service_worker" in word for word in process.cmdline()):
                    workers.append(process)
        return java, workers

    def memory(self) -> dict[str, float]:
        """MiB that are resident of the JVM (`server`) and of the workers."""
        sizes = dict.fromkeys(("server", "workers"), 0.0)
        for part, processes in zip(sizes, self.processes(), strict=True):
            for process in processes:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    sizes[part] += process.memory_info().rss / 2**20
        return sizes


def tiny_models() -> dict[str, Path]:
    """The folder of each stage's tiny model; made where it is missing."""
    named = profiles.choose_models("tiny")
    return {stage: Path(named[f"CLOUDVID_{stage.upper()}_MODEL"]) for stage in STAGES}


def naming(models: Mapping[str, Path]) -> dict[str, str]:
    """The environment variables that name a server's models."""
    return {f"CLOUDVID_{stage.upper()}_MODEL": str(path) for stage, path in models.items()}


def end(server: Server) -> None:
    """Kill a server and clean up, without the seconds that an orderly end takes."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        os.killpg(json.loads(server.pid_file.read_text())["pid"], signal.SIGKILL)
    server.stop()


@contextmanager
def running_server(
    run_dir: Path,
    models: Mapping[str, Path],
    model_store: Path,
    settings: Mapping[str, str] | None = None,
    *,
    wait: bool = True,
) -> Iterator[Running]:
    """A server of these stages for the time of the block; its workers are ready unless `wait` is false.

    Args:
        settings: more of its environment.
    """
    process = Configured(run_dir, free_port(), tuple(models), settings=naming(models) | dict(settings or {}))
    running = Running(process)
    try:
        process.spawn(model_store)
        if wait:
            running.client().wait_until_ready(*map(Stage, models), timeout=READY_SECONDS)
        yield running
    finally:
        end(process)
