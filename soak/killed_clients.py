"""F5: the client is stopped at random moments, started again, and at the end nothing is lost, damaged or doubled.

The client is the command as a user runs it. Its server runs the real handler around stages that take no time, so that
the moments are those of the client's own work: sending, receiving, writing, recording.
"""

import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake_torchserve import FakeTorchServe, fake_torchserve
from folders import contents, no_half_file_has_a_final_name, write_scenes

from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.commands import clean_environment, run_command
from soak.on_record import recorded, seed_of
from soak.report import Report, Round

_SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGINT,) * 2 + (signal.SIGTERM,)
"""Of one round."""
_SCENES = 6
_LONGEST = 0.3  # seconds from a request to the signal: a batch takes a second
_SECONDS = 120


def _run(report: Report) -> None:
    scene_file = write_scenes(report.folder / "scenes.json", _SCENES)
    undisturbed = report.folder / "undisturbed"
    with fake_torchserve() as server:
        subprocess.run(
            run_command(server.url, scene_file, undisturbed),
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
        )
    expected = contents(undisturbed)
    report.spread(lambda each: _round(each, scene_file, expected), threads=2)


def _round(each: Round, scene_file: Path, expected: dict[str, bytes]) -> None:
    signs = each.draw.sample(_SIGNALS, len(_SIGNALS))
    batches = 0
    while signs:  # a batch that ends before all signals were sent is followed by another
        folder = each.folder / str(batches)
        batches += 1
        _batch(each, signs, scene_file, folder, expected)
        check(contents(folder) == expected, f"batch {batches}: not the files of an undisturbed batch")


def _batch(
    each: Round, signs: list[signal.Signals], scene_file: Path, folder: Path, expected: dict[str, bytes]
) -> None:
    """One batch from the first start to its end; the signals that were sent are taken from the list."""
    stopped = 0
    with _recording() as (server, posted):
        while True:
            on_record, before = recorded(folder), len(posted)
            sign = signs[-1] if signs else None
            code, was_sent = _start(each.draw, server, scene_file, folder, sign)
            check(not on_record.intersection(posted[before:]), "what is on record was made again")
            check(no_half_file_has_a_final_name(folder), "a half file has a final name")
            if sign is not None and was_sent:
                signs.pop()
                stopped += 1
                each.report.count_of(sign.name)
            if code == 0:
                break
            check(was_sent and code in _codes(sign, folder, expected), f"exit code {code} after {sign and sign.name}")
        check(len(posted) <= 2 * _SCENES + 4 * stopped, f"{len(posted)} requests, stopped {stopped} times")


@contextmanager
def _recording() -> Iterator[tuple[FakeTorchServe, list[tuple[int, Stage]]]]:
    """A server, and seed and stage of each request that it got."""
    posted: list[tuple[int, Stage]] = []

    def note(stage: Stage, body: bytes) -> None:
        posted.append((seed_of(body), stage))

    with fake_torchserve(step_seconds=0.03, fault=note) as server:
        yield server, posted


def _start(
    draw: random.Random, server: FakeTorchServe, scene_file: Path, folder: Path, sign: signal.Signals | None
) -> tuple[int, bool]:
    """The client's exit code, and whether it got the signal."""
    posts = server.posts.total()
    command = run_command(server.url, scene_file, folder)
    process = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        # The moments are those of the work, not of Python's imports.
        server.await_post(posts + 1, lambda: process.poll() is None)
        was_sent = False
        try:
            process.communicate(timeout=draw.uniform(0.0, _LONGEST) if sign else _SECONDS)
        except subprocess.TimeoutExpired:
            check(sign, f"hung for {_SECONDS} s")
            process.send_signal(sign or signal.SIGKILL)
            was_sent = True
            _, said = process.communicate(timeout=_SECONDS)
            check(b"Traceback" not in said, said.decode(errors="replace")[-2000:])
        return process.returncode, was_sent
    finally:
        process.kill()
        process.communicate()


def _codes(sign: signal.Signals | None, folder: Path, expected: dict[str, bytes]) -> tuple[int, ...]:
    """Exit codes that a signal may lead to: 130 of the batch that it interrupts; a process in its last moments, all
    being done, ends of the signal itself, as a shell would call 130 too.
    """
    if sign is signal.SIGKILL:
        return (-sign,)
    return (130, -sign) if sign and contents(folder) == expected else (130,)


CASE = Case(
    "F5",
    "client stopped at random moments (SIGKILL, SIGINT, SIGTERM), started again",
    "nothing lost, damaged or doubled",
    count=50,
    short=1,
    run=_run,
    unit="times 9 signals",
)
