"""L2: bursts of twelve on one worker and a queue of four: overflow is told at once, and in the end all are served."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import requests

from cloudvid import Client
from cloudvid.connection import plain_session
from cloudvid.manifest import file_digest
from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.jobs import LONGEST, Made, make, scene
from soak.lane import Work
from soak.report import Report, Round
from soak.servers import QUEUE, Served, on_servers

_BURST = 12
_STAGE = Stage.I2V  # of the two the one whose queue holds 4
_REFUSED = 0.1  # seconds


def _run(report: Report) -> None:
    on_servers(report, _bursts)
    report.limit("refused after", 95, _REFUSED)


def _bursts(running: Served) -> Work:
    folder = running.process.run_dir.parent
    return partial(_burst, running, make(running.client(), scene("picture"), Stage.T2I, folder), folder)


def _burst(running: Served, picture: Made, beside: Path, each: Round) -> None:
    at_once = threading.Barrier(_BURST)
    path = beside / picture.entry.file

    def one(index: int) -> str:
        folder = each.folder / str(index)
        folder.mkdir()
        (folder / path.name).hardlink_to(path)
        client = Client(running.url, key_file=running.key_file, session=_timing(each.report), timeout=LONGEST)
        at_once.wait()
        made = make(client, scene(f"r{each.number}b{index}", steps=2), _STAGE, folder, picture.entry)
        check(set(made.failed) <= {"Busy"}, f"failed otherwise than by a full queue: {made.failed}")
        check(file_digest(folder / made.entry.file) == made.entry.sha256, "the file is not what is on record")
        each.report.count_of("answered")
        each.report.count_of("refused", len(made.failed))
        return made.entry.sha256

    with ThreadPoolExecutor(_BURST) as pool:
        digests = list(pool.map(one, range(_BURST)))
    check(len(set(digests)) == _BURST, "two requests got the same file")


def _timing(report: Report) -> requests.Session:
    """A session as the client has it, that notes how soon a refusal came."""

    def note(response: requests.Response, **_: Any) -> None:
        if response.status_code == 503:
            report.measure("refused after", response.elapsed.total_seconds())

    session = plain_session()
    session.hooks["response"].append(note)
    return session


CASE = Case(
    "L2",
    f"bursts of {_BURST} on 1 worker and a queue of {QUEUE[_STAGE]}",
    f"overflow refused in < 100 ms (p95), all {_BURST} finish in the end",
    count=100,
    short=1,
    run=_run,
    unit="bursts",
)
