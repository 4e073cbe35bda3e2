"""Real servers for the cases: TorchServe, and archives with the tiny models, or with stages that make noise at once."""

import contextlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import profiles
import psutil
from changed_archives import build, with_noise
from conftest import Running, end, naming
from loopback import free_port
from torchserve_process import Server, group

from cloudvid_schema.protocol import Stage
from soak.case import check
from soak.lane import Lane, Work
from soak.report import Report

QUEUE = {Stage.T2I: 8, Stage.I2V: 4}
"""Requests that wait, at most."""
RESPONSE_SECONDS = 3
"""Without a sign of life, after which a worker is replaced."""
_FIRST_PART = {
    stage: {"jobQueueSize": QUEUE[stage], "responseTimeout": RESPONSE_SECONDS, "maxRetryTimeoutInSec": 30}
    for stage in Stage
}
_READY_SECONDS = 240.0


KINDS = ("tiny models", "noise")
"""Of servers."""


@dataclass(frozen=True)
class Configured(Server):
    """A server with more in its environment."""

    settings: Mapping[str, str] = field(default_factory=dict)

    def _environment(self, java: Path) -> dict[str, str]:
        # One thread a worker: the workers are many, the cores few.
        return {**super()._environment(java), "OMP_NUM_THREADS": "1", **self.settings}


@dataclass(frozen=True)
class Served(Running):
    """A server of the suite's own."""

    models: Mapping[str, Path]
    """By stage; a case may break them, and mends them again. None where noise is made."""
    store: Path
    """The archives."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return KINDS[not self.models]


def until(holds: Callable[[], object], what: str, seconds: float = _READY_SECONDS) -> None:
    """Return once something holds.

    Raises:
        Wrong: it does not, for so long.
    """
    ends = time.monotonic() + seconds
    while not holds():
        check(time.monotonic() < ends, f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def _changed(handlers: Path, *, make_noise: bool) -> None:
    """Give both stages short queues and time-outs; have them make noise, perhaps."""
    if make_noise:
        with_noise(handlers)
    for stage, settings in _FIRST_PART.items():
        path = handlers / f"{stage}.yaml"
        text = path.read_text()
        for name, value in settings.items():
            text = f"{name}: {value}\n" + re.sub(rf"^{name}:.*\n", "", text, flags=re.MULTILINE)
        path.write_text(text + (f"  stall_seconds: {4 * RESPONSE_SECONDS}\n" if make_noise else ""))


def _copy_models(folder: Path) -> dict[str, Path]:
    """The tiny models by stage, in a folder of the case's own: it may break them."""
    named = profiles.choose_models("tiny")
    return {
        stage: shutil.copytree(named[f"CLOUDVID_{stage.upper()}_MODEL"], folder / f"cloudvid-tiny-{stage}")
        for stage in Stage
    }


@dataclass(frozen=True)
class Processes:
    """Those of a server that stay; a worker's ffmpeg comes and goes."""

    java: list[psutil.Process]
    workers: list[psutil.Process]


def processes(running: Running) -> Processes:
    """What runs of a server now."""
    found = Processes([], [])
    pid = json.loads(running.process.pid_file.read_text())["pid"]
    for process in group(pid, running.process.run_dir):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.name() == "java":
                found.java.append(process)
            elif any("model_service_worker" in word for word in process.cmdline()):
                found.workers.append(process)
    return found


def start(running: Served) -> None:
    """Start a server (again), and wait for both stages."""
    running.process.spawn(running.store)
    running.client().wait_until_ready(timeout=_READY_SECONDS)


@contextmanager
def served(folder: Path, settings: Mapping[str, str] | None = None, *, make_noise: bool = False) -> Iterator[Served]:
    """A server whose stages have a worker each, short queues and short time-outs.

    Args:
        folder: archives, models and the server's own folder lie in it.
        settings: more of its environment.
        make_noise: its stages have no models, and their workers start in less than half the time.
    """
    store = build(folder / "archives", partial(_changed, make_noise=make_noise))
    models = {} if make_noise else _copy_models(folder)
    server = Configured(folder / "run", free_port(), settings=naming(models) | dict(settings or {}))
    running = Served(server, models, store)
    try:
        start(running)
        yield running
    finally:
        end(running.process)


_EACH = 5


def on_servers(report: Report, work: Callable[[Served], Work], tiny: int = 1, noise: int = 2) -> None:
    """Do all rounds: every fifth on servers with the tiny models, then the others on such that make noise.

    The former load a core for seconds as they start: none of the latter is timed beside them.

    Args:
        report: of the case.
        work: what does a round, of a server that has just started.
        tiny: servers of the one kind at once.
        noise: of the other; none: all rounds are for the first.
    """
    numbers = itertools.count()

    @contextmanager
    def begin(*, make_noise: bool) -> Iterator[Work]:
        with served(report.folder / f"server{next(numbers)}", make_noise=make_noise) as running:
            yield work(running)

    if report.running is not None:
        report.spread(work(report.running), threads=1)
        return
    real = Lane(partial(begin, make_noise=False), lambda number: not noise or number % _EACH == 0)
    other = Lane(partial(begin, make_noise=True), lambda number: number % _EACH != 0)
    report.share([real] * tiny)
    report.share([other] * noise)
