"""N1: batches over a bad network: packets lost, late and out of order, a link that is cut and mended.

The client is the command as a user runs it, in a network namespace of its own, started again where it gave up. Its
server runs the real handler around stages that take no time.
"""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_torchserve import fake_torchserve
from folders import contents, no_half_file_has_a_final_name, write_scenes
from namespaces import Namespace

from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.commands import clean_environment, run_command
from soak.lane import Lane, Work
from soak.link import SERVER, Link, Weather, linked, obstacle
from soak.on_record import recorded, seed_of
from soak.report import Report, Round

_SCENES = 6
_TIMEOUT, _PATIENCE = 4, 4  # seconds that the client waits for a sign of life, and for a server that is away
_FOR_EVER = 120.0  # seconds; a cut ends with the client's process, whose patience is over before
_STARTS = 8
_SECONDS = 240
_LINKS = 3
"""At once: most of the time they wait."""
_KINDS = ("loss", "delay", "reorder", "short cuts", "long cut", "all")


def _weather(each: Round, kind: str) -> Weather:
    draw = each.draw
    bad = {
        "loss": Weather(loss=draw.uniform(0.01, 0.1)),
        "delay": Weather(delay=draw.uniform(0.02, 0.15)),
        "reorder": Weather(delay=0.005, jitter=draw.uniform(0.01, 0.05)),
        "all": Weather(draw.uniform(0.01, 0.05), draw.uniform(0.005, 0.05), draw.uniform(0.005, 0.03)),
    }
    return bad.get(kind, Weather())


def _cuts(each: Round, kind: str) -> list[tuple[float, float]]:
    """Seconds from the first request, or from the cut before, to each cut, and how long it lasts."""
    draw = each.draw
    if kind in ("short cuts", "all"):
        return [(draw.uniform(0.05, 0.6), draw.uniform(0.1, 1.5)) for _ in range(3)]
    # A long one outlasts the client's patience: it gives up, and is started again.
    return [(draw.uniform(0.0, 0.3), _FOR_EVER)] if kind == "long cut" else []


class _Batch:
    """A batch until it is done."""

    def __init__(self, each: Round, link: Link, near: Namespace, far: Namespace) -> None:
        self._each, self._link, self._near, self._far = each, link, near, far
        self._posted: list[tuple[int, Stage]] = []
        self._began, self._ended = threading.Event(), threading.Event()
        self._folder = each.folder / "out"
        self.starts = self.sent = self.retried = 0

    def _note(self, stage: Stage, body: bytes) -> None:
        self._posted.append((seed_of(body), stage))
        self._began.set()

    def carry_out(self, scene_file: Path, kind: str) -> dict[str, bytes]:
        """What lies in the folder in the end."""
        self._link.begin(_weather(self._each, kind), self._each.draw.randrange(2**32))
        cuts = _cuts(self._each, kind)
        with fake_torchserve(self._far.call, host=SERVER, step_seconds=0.03, fault=self._note) as server:
            cutting = threading.Thread(target=self._cut, args=(cuts,), name="cuts")
            cutting.start()
            try:
                while self._start(server.url, scene_file) != 0:
                    check(self.starts < _STARTS, f"not done after {self.starts} starts")
            finally:
                self._ended.set()
                self._began.set()
                cutting.join()
        check(len(self._posted) <= self.sent, f"{self.sent} requests were sent, {len(self._posted)} arrived")
        return contents(self._folder)

    def _cut(self, cuts: list[tuple[float, float]]) -> None:
        self._began.wait()
        for after, lasts in cuts:
            if self._ended.wait(after):
                return
            self._link.is_cut = True
            self._ended.wait(lasts)
            self._link.is_cut = False
            self._each.report.count_of("cuts")

    def _start(self, url: str, scene_file: Path) -> int:
        """The client's exit code."""
        self.starts += 1
        on_record, before = recorded(self._folder), len(self._posted)
        options = ("--json", "--timeout", str(_TIMEOUT), "--patience", str(_PATIENCE))
        command = [part for part in run_command(url, scene_file, self._folder, *options) if part != "--quiet"]
        # fmt: off
        done = subprocess.run(
            [*self._near.prefix, *command], env=clean_environment(), capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )
        # fmt: on
        self._ended.set()
        said = done.stderr[-1500:]
        check("Traceback" not in done.stderr, said)
        check(done.returncode in (0, 1, 3), f"exit code {done.returncode}: {said}")
        check(not on_record.intersection(self._posted[before:]), "what was on record was made again")
        check(no_half_file_has_a_final_name(self._folder), "a half file has a final name")
        events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        self.retried += sum(event["event"] == "stage_retried" for event in events)
        made = [(event["scene"], event["stage"]) for event in events if event["event"] == "stage_done"]
        check(len(made) == len(set(made)), f"made twice: {made}")
        self.sent += sum(event.get("requests", 0) for event in events if event["event"] == "batch_finished")
        return done.returncode


def _run(report: Report) -> None:
    scene_file = write_scenes(report.folder / "scenes.json", _SCENES)
    undisturbed = report.folder / "undisturbed"
    with fake_torchserve() as server:
        command = run_command(server.url, scene_file, undisturbed)
        subprocess.run(command, env=clean_environment(), stdout=subprocess.DEVNULL, check=True, timeout=_SECONDS)
    expected = contents(undisturbed)

    @contextmanager
    def begin() -> Iterator[Work]:
        with linked() as (link, near, far):

            def work(each: Round) -> None:
                kind = _KINDS[each.number % len(_KINDS)]
                batch = _Batch(each, link, near, far)
                check(batch.carry_out(scene_file, kind) == expected, f"{kind}: not the files of an undisturbed batch")
                check(kind != "long cut" or batch.starts > 1, "the client never gave up")
                report.count_of("started again", batch.starts - 1)
                report.count_of("requests sent again", batch.retried)

            yield work
            report.count_of("packets carried", link.carried)
            report.count_of("lost", link.lost)
            report.count_of("overtaken", link.overtaken)

    report.share([Lane(begin)] * (_LINKS if report.timed else 1))


CASE = Case(
    "N1",
    "batches over a link that loses, delays, reorders and is cut, packet by packet",
    "as F5: nothing lost, damaged or doubled",
    count=20,
    short=1,
    run=_run,
    unit="batches",
    why_not=obstacle,
)
