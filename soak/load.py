"""L1: 32 clients at once, each with batches of its own, and queues that hold 8 and 4 requests.

The clients are far more than the queues hold: most requests are refused at first, and the clients' own retries bring
them through. Every file is checked against its request; one of each batch is made again, alone, and is the same.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from conftest import Running

from cloudvid import Client, render
from cloudvid.decisions import request_of
from cloudvid.events import BatchFinished
from cloudvid.manifest import Entry, canonical, file_digest, read_records
from cloudvid.media_files import read_recipe
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import Stage
from soak.case import Case, Wrong, check
from soak.jobs import LONGEST, scene
from soak.memory import Memory
from soak.report import Report, Round

_CLIENTS = 32
_SCENES = 10
"""Of a batch; each is two requests."""
_WORKERS = 2
"""Of each stage."""
_GROWTH = 50.0
"""MiB."""


@dataclass(frozen=True)
class _Sample:
    """A file that is to be made again."""

    request: Any
    picture: bytes | None
    sha256: str


class _Storm:
    """What all batches made."""

    def __init__(self, report: Report, running: Running) -> None:
        self._report, self._running = report, running
        self._lock = threading.Lock()
        self._digests: set[str] = set()
        self.samples: list[_Sample] = []
        self.memory = Memory(running)

    def batch(self, each: Round) -> None:
        """One client's batch, and whether each of its files is the one that was asked for."""
        scenes = [scene(f"r{each.number}s{index}") for index in range(_SCENES)]
        for event in render(scenes, self._running.client(timeout=LONGEST), each.folder):
            if isinstance(event, BatchFinished):
                check((event.done, event.failed) == (_SCENES, 0), f"not all is done: {event}")
                self._report.count_of("requests sent", event.requests)
        self.memory.served(2 * _SCENES)
        records, _ = read_records(each.folder)
        digests = {
            (made.id, stage): self._judge(each, made, stage, records[made.id].entry(stage))
            for made in scenes
            for stage in Stage
        }
        chosen, stage = each.draw.choice(scenes), each.draw.choice(list(Stage))
        picture = (each.folder / chosen.picture_name).read_bytes() if stage is Stage.I2V else None
        with self._lock:
            self.samples.append(_Sample(request_of(chosen, stage, True), picture, digests[chosen.id, stage]))

    def _judge(self, each: Round, made: Scene, stage: Stage, entry: Entry | None) -> str:
        if entry is None:
            raise Wrong(f"{made.id} has no {stage} on record")
        path = each.folder / entry.file
        check(file_digest(path) == entry.sha256, f"{entry.file} is not what is on record")
        recipe = read_recipe(path) or {}
        request = canonical(request_of(made, stage, True))
        wrong = {name for name, value in recipe["parameters"].items() if request[name] not in (value, None)}
        check(not wrong, f"{entry.file} was made with another {sorted(wrong)}: {recipe}")
        check(entry.seed == request["seed"], f"{entry.file}: the answer names the seed {entry.seed}")
        if stage is Stage.I2V:
            picture = file_digest(each.folder / made.picture_name)
            check(recipe["picture"]["sha256"] == picture, f"{entry.file} was made of another picture")
        with self._lock:
            check(entry.sha256 not in self._digests, f"{entry.file} is another request's file")
            self._digests.add(entry.sha256)
        return entry.sha256


def _run(report: Report) -> None:
    with report.server() as running:
        client = running.client()
        _scale(client, _WORKERS)
        storm = _Storm(report, running)
        report.spread(storm.batch, threads=_CLIENTS)
        storm.memory.stop()
        text, growth = storm.memory.growth()
        report.note("memory", text)
        for part, grown in growth.items():
            if report.timed and report.only is None and grown >= _GROWTH:
                report.fail(f"{part} grew by {grown:.0f} MiB")
        for sample in storm.samples:
            again = client.send(sample.request, sample.picture)
            if again.sha256 != sample.sha256:
                report.fail(f"made again, alone, it is another file: {sample.request}")
            report.count_of("made again alone")
        _scale(client, 1)


def _scale(client: Client, workers: int) -> None:
    with ThreadPoolExecutor(len(Stage)) as both:
        list(both.map(lambda stage: client.scale(stage, workers), Stage))


CASE = Case(
    "L1",
    "32 clients, queues of 8 and 4, the clients' own retries",
    "every result unique and right, none hung, server and workers each grow by < 50 MiB",
    count=250,
    short=3,
    run=_run,
    unit="batches of 20 requests",
)
