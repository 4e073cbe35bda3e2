"""F4: a model that never loads again: the client says so soon, whether it began before or after."""

import os
import signal
import subprocess
import time
from pathlib import Path

from folders import write_scenes

from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.commands import clean_environment, client_command
from soak.lane import Work
from soak.report import Report, Round
from soak.servers import Served, on_servers, until

_SAYS = 30.0  # seconds after the server gave the model up
_SECONDS = 240


def _run(report: Report) -> None:
    scene_file = write_scenes(report.folder / "scenes.json", 40)

    def models(running: Served) -> Work:
        def work(each: Round) -> None:
            stage = each.draw.choice(list(Stage))
            weights = running.models[stage] / "unet"
            aside = weights.with_name("unet aside")
            running.client().wait_until_ready(timeout=_SECONDS)
            try:
                _break(each, running, stage, (weights, aside), scene_file)
            finally:
                if aside.exists():
                    aside.rename(weights)
                running.process.stop()
                running.process.spawn(running.store)

        return work

    on_servers(report, models, tiny=3, noise=0)
    report.limit("says so after", 100, _SAYS)


def _break(each: Round, running: Served, stage: Stage, paths: tuple[Path, Path], scene_file: Path) -> None:
    """In even rounds the batch has begun before, in odd rounds it begins when the server has given up."""
    command = client_command(running, "run", str(scene_file), "--output-dir", str(each.folder / "out"), "--quiet")

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    in_mid_batch = each.number % 2 == 0
    process = begin() if in_mid_batch else None
    try:
        if process is not None:
            until(lambda: any((each.folder / "out").glob("*.mp4")), "a clip is made")
        weights, aside = paths
        weights.rename(aside)
        (pid,) = running.pids(stage)
        os.kill(pid, signal.SIGKILL)
        until(lambda: running.client().ping(stage) == 500, "the server says that it gave up", _SECONDS)
        given_up = time.monotonic()
        process = process or begin()
        _, said = process.communicate(timeout=_SECONDS)
        each.report.measure("says so after", max(0.0, time.monotonic() - given_up))
    finally:
        if process is not None:
            process.kill()
            process.communicate()
    check(process.returncode == 3, f"exit code {process.returncode}: {said[-2000:]}")
    check("do not come up" in said, f"it does not say what is wrong: {said[-2000:]}")
    check("Traceback" not in said, said[-2000:])
    each.report.count_of("in mid-batch" if in_mid_batch else "before the batch")


CASE = Case(
    "F4",
    "a model that never loads again, in mid-batch and before it",
    "the client says so within 30 s of the server's giving up, exit code 3",
    count=5,
    short=1,
    run=_run,
    unit="models",
)
