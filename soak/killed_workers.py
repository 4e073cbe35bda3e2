"""F1: a worker is killed outright at a random moment of a request, which costs at most one more inference."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cloudvid.events import BatchEvent, StageStarted
from cloudvid.manifest import Entry
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.jobs import Made, make, scene
from soak.lane import Work
from soak.report import Report, Round
from soak.servers import KINDS, Served, on_servers, until

_RECOVERY = 10.0  # seconds
_NOT_MADE = {"Busy", "Unreachable"}
"""Failures of a request that no worker had begun."""


@dataclass(frozen=True)
class _Undisturbed:
    """A request that nothing disturbs."""

    made: Made
    seconds: float


def _run(report: Report) -> None:
    on_servers(report, _kills)
    for kind in KINDS:
        report.limit(f"recovery, {kind}", 95, _RECOVERY)


def _kills(running: Served) -> Work:
    """What kills a worker, once it is known what an undisturbed request takes."""
    folder = running.process.run_dir.parent / "undisturbed"
    folder.mkdir(exist_ok=True)
    usual: dict[Stage, _Undisturbed] = {}
    for stage in (*Stage, *Stage):  # the first request of a worker takes longer than its others
        began = time.monotonic()
        picture = usual[Stage.T2I].made.entry if stage is Stage.I2V else None
        made = make(running.client(), _victim(), stage, folder, picture)
        usual[stage] = _Undisturbed(made, time.monotonic() - began)
    return partial(_kill, running, usual, folder)


def _victim() -> Scene:
    return scene("victim", steps=8, frames=6)


def _kill(running: Served, usual: Mapping[Stage, _Undisturbed], folder: Path, each: Round) -> None:
    stage = list(Stage)[each.number % 2]
    picture: Entry | None = None
    if stage is Stage.I2V:
        picture = usual[Stage.T2I].made.entry
        (each.folder / picture.file).hardlink_to(folder / picture.file)
    until(lambda: len(running.pids(stage)) == 1, f"{stage} has one worker")
    (pid,) = running.pids(stage)
    killed_at: list[float] = []

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        killed_at.append(time.monotonic())

    timer = threading.Timer(each.draw.uniform(0.0, usual[stage].seconds), kill)

    def on_event(event: BatchEvent) -> None:
        if isinstance(event, StageStarted) and event.attempt == 1:
            timer.start()

    made = make(running.client(), _victim(), stage, each.folder, picture, on_event=on_event)
    timer.join()
    until(lambda: running.pids(stage) - {pid}, f"{stage} has a new worker")
    each.report.measure(f"recovery, {running.kind}", time.monotonic() - killed_at[0])
    more = [error for error in made.failed if error not in _NOT_MADE]
    each.report.count_of("inferences again", len(more))
    check(len(more) <= 1, f"made {len(more) + 1} times: {made.failed}")
    check(made.entry.sha256 == usual[stage].made.entry.sha256, "not the file of an undisturbed request")


CASE = Case(
    "F1",
    "worker killed with -9 at a random moment of a request",
    "at most 1 more inference each, a new worker is ready after < 10 s (p95)",
    count=100,
    short=2,
    run=_run,
    unit="kills",
)
