"""The client against a fake server: killed (F5), short of room (F6), behind a bad network (N1).

The client is the command as a user runs it. Its server runs the real handler around stages that take no time, so that
what is disturbed is the client's own work: sending, receiving, writing, recording.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudvid.batch.manifest import read_records
from cloudvid_schema.protocol import Stage
from soak.rounds import Round, Rounds, Work, case
from support import link, small_disk
from support.command_line import SECONDS, command, environment, run
from support.fake_torchserve import FakeTorchServe, fake_torchserve
from support.folders import contents, no_half_file_has_a_final_name, scenes, write_scenes
from support.loopback import connection

Posted = list[tuple[int, Stage]]
"""Seed, of which each request has its own, and stage of what a server was asked for."""


def _batch(scene_file: Path, folder: Path, server: FakeTorchServe, *options: object) -> list[str]:
    return command("run", scene_file, "--output-dir", folder, *connection(server), *options)


def undisturbed(scene_file: Path, folder: Path) -> dict[str, bytes]:
    """The files of a batch that nothing disturbs."""
    with fake_torchserve() as server:
        done = run(_batch(scene_file, folder, server, "--quiet"))
    assert done.returncode == 0, done.stderr
    return contents(folder)


@contextmanager
def recording(**options: Any) -> Iterator[tuple[FakeTorchServe, Posted]]:
    """A server, and the requests that it got."""
    posted: Posted = []

    def note(stage: Stage, body: bytes) -> None:
        posted.append((int(re.findall(rb'"seed":(\d+)', body)[-1]), stage))  # the last, after that of a clip's picture

    with fake_torchserve(fault=note, **options) as server:
        yield server, posted


def recorded(folder: Path) -> set[tuple[int, Stage]]:
    """Seed and stage of each file that the manifest knows."""
    records, _ = read_records(folder)
    return {(entry.seed, stage) for record in records.values() for stage in Stage if (entry := record.entry(stage))}


# F5: stopped at random moments, started again; at the end nothing is lost, damaged or doubled.

_SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGINT,) * 2 + (signal.SIGTERM,)
"""Of one round."""
_SCENES = 6
_LATEST = 0.3  # seconds from a request to the signal: a batch takes a second


@case("F5", count=50, short=1, unit="times 9 signals")
def test_killed_clients(rounds: Rounds) -> None:
    """Client stopped at random moments (SIGKILL, SIGINT, SIGTERM), started again.

    Nothing lost, damaged or doubled.
    """
    scene_file = write_scenes(rounds.folder / "scenes.json", _SCENES)
    expected = undisturbed(scene_file, rounds.folder / "undisturbed")

    def work(each: Round) -> None:
        signals = each.draw.sample(_SIGNALS, len(_SIGNALS))
        batches = 0
        while signals:  # a batch that ends before all signals were sent is followed by another
            folder = each.folder / str(batches)
            batches += 1
            _killed_batch(each, signals, scene_file, folder, expected)
            assert contents(folder) == expected, f"batch {batches}: not the files of an undisturbed batch"

    rounds.do(work, threads=2)


def _killed_batch(
    each: Round, signals: list[signal.Signals], scene_file: Path, folder: Path, expected: dict[str, bytes]
) -> None:
    """One batch from the first start to its end; the signals that were sent are taken from the list."""
    stopped = 0
    with recording(step_seconds=0.03) as (server, posted):
        start = _batch(scene_file, folder, server, "--quiet")
        while True:
            on_record, before = recorded(folder), len(posted)
            sign = signals[-1] if signals else None
            code, was_sent = _start(each, server, start, sign)
            assert not on_record.intersection(posted[before:]), "what is on record was made again"
            assert no_half_file_has_a_final_name(folder), "a half file has a final name"
            if sign is not None and was_sent:
                signals.pop()
                stopped += 1
                each.rounds.count(sign.name)
            if code == 0:
                break
            assert sign is not None and was_sent, f"exit code {code} without a signal"
            assert code in _codes(sign, folder, expected), f"exit code {code} after {sign.name}"
        assert len(posted) <= 2 * _SCENES + 4 * stopped, f"{len(posted)} requests, stopped {stopped} times"


def _start(each: Round, server: FakeTorchServe, command: list[str], sign: signal.Signals | None) -> tuple[int, bool]:
    """The client's exit code, and whether it got the signal."""
    posts = server.posts.total()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        # The moments are those of the work, not of Python's imports.
        server.await_post(posts + 1, lambda: process.poll() is None)
        try:
            process.communicate(timeout=each.draw.uniform(0.0, _LATEST) if sign else SECONDS)
            return process.returncode, False
        except subprocess.TimeoutExpired:
            assert sign is not None, f"hung for {SECONDS} s"
            process.send_signal(sign)
            _, stderr = process.communicate(timeout=SECONDS)
            assert b"Traceback" not in stderr, stderr.decode(errors="replace")[-2000:]
            return process.returncode, True
    finally:
        process.kill()
        process.communicate()


def _codes(sign: signal.Signals, folder: Path, expected: dict[str, bytes]) -> tuple[int, ...]:
    """Exit codes that a signal may lead to: 130 of the batch that it interrupts; a process that has done everything and
    is about to end dies of the signal itself, which a shell reports as 130 too.
    """
    if sign is signal.SIGKILL:
        return (-sign,)
    return (130, -sign) if contents(folder) == expected else (130,)


# F6: small file systems and `ulimit -f`, of many sizes. A batch ends with a clear error, and every request that was
# sent has its result on record. With room it goes on.

_FEW = 4
_PICTURE = 256  # pixels a side; of noise, that is 200 kB
_FULL = 5 * 2**19  # bytes; with it a file system has room for all
_LONG = 500_000  # bytes; more than the longest of its files
_LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
)
_CLEAR = ("cannot be written", "cannot be used", "bytes left", "files are limited to")


@case("F6", count=50, short=2, unit="sizes")
def test_full_disks(rounds: Rounds) -> None:
    """The disk is full (small file systems) or files too long (ulimit -f), at sizes drawn.

    Clear error, no inference whose result cannot be stored.
    """
    scene_file = rounds.folder / "scenes.json"
    document = scenes(_FEW, width=_PICTURE, height=_PICTURE)
    for each in document:
        each["i2v_params"]["num_frames"] = 2
    scene_file.write_text(json.dumps(document))
    expected = undisturbed(scene_file, rounds.folder / "undisturbed")
    if obstacle := small_disk.obstacle():
        rounds.notes["small file systems"] = f"not run: {obstacle}"

    def work(each: Round) -> None:
        if each.number % 2 or obstacle:
            before = (sys.executable, "-c", _LIMITED, str(each.draw.randrange(_LONG)))
            _small_batch(each, scene_file, each.folder / "out", expected, before=before)
            rounds.count("ulimit -f")
        else:
            with small_disk.small_disk(each.folder, each.draw.randrange(4096, _FULL)) as (folder, enlarge):
                _small_batch(each, scene_file, folder / "out", expected, enlarge=enlarge)
            rounds.count("small file systems")

    rounds.do(work, threads=2)


def _small_batch(
    each: Round,
    scene_file: Path,
    folder: Path,
    expected: dict[str, bytes],
    before: tuple[str, ...] = (),
    enlarge: Callable[[], None] = lambda: None,
) -> None:
    """A batch where there is little room: by what is before its command, or until the file system is enlarged."""
    with fake_torchserve(step_seconds=0.01) as server:
        start = _batch(scene_file, folder, server, "--quiet")
        done = run([*before, *start])
        end = done.stderr[-500:]
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        assert done.returncode in (0, 1, 2), f"exit code {done.returncode}: {end}"
        if done.returncode:
            assert any(words in done.stderr for words in _CLEAR), f"not clear: {end}"
            each.rounds.count("refused" if server.posts.total() == 0 else "ended early")
        else:
            each.rounds.count("had room")
        assert no_half_file_has_a_final_name(folder), "a half file has a final name"
        kept, posts = len(recorded(folder)), server.posts.total()
        assert kept == posts, f"{posts} requests were sent, {kept} results are on record: {end}"
        enlarge()
        again = run(start)
        assert again.returncode == 0, f"with room, exit code {again.returncode}: {again.stderr[-500:]}"
        assert server.posts.total() == 2 * _FEW, f"{server.posts.total()} requests in all"
    assert contents(folder) == expected, "not the files of an undisturbed batch"


# N1: packets lost, late and out of order, a link that is cut and restored. The client has a network namespace of its
# own, and is started again where it gave up.

_TIMEOUT, _PATIENCE = 4, 4  # seconds that the client waits for a sign of life, and for a server that is away
_FOR_EVER = 120.0  # seconds; a cut ends with the client's process, whose patience is over before
_STARTS = 8
_LINKS = 3
"""At once: most of the time they wait."""
_KINDS = ("loss", "delay", "reorder", "short cuts", "long cut", "all")


@pytest.mark.skipif(bool(link.obstacle()), reason=link.obstacle())
@case("N1", count=20, short=1, unit="batches")
def test_network(rounds: Rounds) -> None:
    """Batches over a link that loses, delays, reorders and is cut, packet by packet.

    As F5: nothing lost, damaged or doubled.
    """
    scene_file = write_scenes(rounds.folder / "scenes.json", _SCENES)
    expected = undisturbed(scene_file, rounds.folder / "undisturbed")

    @contextmanager
    def begin() -> Iterator[Work]:
        with link.linked() as (wire, near, far):

            def work(each: Round) -> None:
                kind, folder = _KINDS[each.number % len(_KINDS)], each.folder / "out"
                wire.begin(_weather(each, kind), each.draw.randrange(2**32))
                cuts = _cuts(each, kind)
                options = ("--json", "--timeout", _TIMEOUT, "--patience", _PATIENCE)
                with recording(within=far.call, host=link.SERVER, step_seconds=0.03) as (server, posted):
                    start = [*near.prefix, *_batch(scene_file, folder, server, *options)]
                    with _cutting(each, wire, server, cuts) as ended:
                        starts = _start_until_done(each, start, folder, posted, ended)
                assert contents(folder) == expected, f"{kind}: not the files of an undisturbed batch"
                assert kind != "long cut" or starts > 1, "the client never gave up"
                rounds.count("started again", starts - 1)

            yield work
            for name, packets in (
                ("packets carried", wire.carried),
                ("lost", wire.lost),
                ("overtaken", wire.overtaken),
            ):
                rounds.count(name, packets)

    rounds.do_in(begin, _LINKS if rounds.is_timed else 1, rounds.numbers)


def _weather(each: Round, kind: str) -> link.Weather:
    draw = each.draw
    bad = {
        "loss": link.Weather(loss=draw.uniform(0.01, 0.1)),
        "delay": link.Weather(delay=draw.uniform(0.02, 0.15)),
        "reorder": link.Weather(delay=0.005, jitter=draw.uniform(0.01, 0.05)),
        "all": link.Weather(draw.uniform(0.01, 0.05), draw.uniform(0.005, 0.05), draw.uniform(0.005, 0.03)),
    }
    return bad.get(kind, link.Weather())


def _cuts(each: Round, kind: str) -> list[tuple[float, float]]:
    """Seconds from the first request, or from the cut before, to each cut, and how long it lasts."""
    draw = each.draw
    if kind in ("short cuts", "all"):
        return [(draw.uniform(0.05, 0.6), draw.uniform(0.1, 1.5)) for _ in range(3)]
    # A long one outlasts the client's patience: it gives up, and is started again.
    return [(draw.uniform(0.0, 0.3), _FOR_EVER)] if kind == "long cut" else []


@contextmanager
def _cutting(
    each: Round, wire: link.Link, server: FakeTorchServe, cuts: list[tuple[float, float]]
) -> Iterator[threading.Event]:
    """Cuts the link from the first request on, until the event is set."""
    ended = threading.Event()

    def cut() -> None:
        server.await_post(1, lambda: not ended.is_set())
        for after, lasts in cuts:
            if ended.wait(after):
                return
            wire.is_cut = True
            ended.wait(lasts)
            wire.is_cut = False
            each.rounds.count("cuts")

    thread = threading.Thread(target=cut, name="cuts")
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join()


def _start_until_done(each: Round, start: list[str], folder: Path, posted: Posted, ended: threading.Event) -> int:
    """Start the client until all is done, how often is returned; the first time that it ends, cuts end too."""
    sent = 0
    for starts in range(1, _STARTS + 1):
        on_record, before = recorded(folder), len(posted)
        done = run(start)
        stderr = done.stderr[-1500:]
        ended.set()
        assert "Traceback" not in done.stderr, stderr
        assert done.returncode in (0, 1, 3), f"exit code {done.returncode}: {stderr}"
        assert not on_record.intersection(posted[before:]), "what was on record was made again"
        assert no_half_file_has_a_final_name(folder), "a half file has a final name"
        events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        made = [(event["scene"], event["stage"]) for event in events if event["event"] == "stage_done"]
        assert len(made) == len(set(made)), f"made twice: {made}"
        sent += sum(event.get("requests", 0) for event in events if event["event"] == "batch_finished")
        each.rounds.count("requests sent again", sum(event["event"] == "stage_retried" for event in events))
        if done.returncode == 0:
            assert len(posted) <= sent, f"{sent} requests were sent, {len(posted)} arrived"
            return starts
    raise AssertionError(f"not done after {_STARTS} starts")
