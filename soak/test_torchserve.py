"""Load and faults on a real TorchServe: L1, L2, F1 to F4."""

import os
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import requests

from cloudvid import Client, CloudVidError, Generated, RenderOptions, Scene, StageStarted, parse_scenes, render
from cloudvid.batch.events import BatchEvent, BatchFinished, SceneDone, SceneFailed, StageDone, StageRetried
from cloudvid.batch.manifest import Entry, read_records
from cloudvid.batch.media import read_recipe
from cloudvid.batch.progress import Asked
from cloudvid.endpoints.connection import plain_session
from cloudvid.endpoints.failures import Tries, backoff
from cloudvid_schema.files import sha256
from cloudvid_schema.protocol import Stage
from deploy.torchserve import alive_after
from soak.rounds import Round, Rounds, Work, case
from soak.servers import KINDS, Served
from support.command_line import SECONDS, command, environment
from support.folders import pictures_and_clips, write_scenes
from support.waiting import until

LONGEST = 240.0
"""Seconds without a sign of life, after which a request hangs."""
DoOnServers = Callable[..., None]


def scene(name: str, steps: int = 1, frames: int = 2) -> Scene:
    """The cheapest real scene."""
    t2i = {"width": 64, "height": 64, "num_inference_steps": steps}
    i2v = {"num_inference_steps": steps, "num_frames": frames}
    (made,) = parse_scenes([{"id": name, "scene_desc": f"scene {name}", "t2i_params": t2i, "i2v_params": i2v}])
    return made


# L1: the clients are far more than the queues hold: most requests are refused at first, and the clients' own retries
# bring them through. Every file is checked against its request; one of each batch is made again by itself.

_CLIENTS = 32
_SCENES = 10  # of a batch; each is two requests
_GROWTH = 50.0  # MiB


@case("L1", count=250, short=3, unit="batches of 20 requests")
def test_many_clients_at_once(rounds: Rounds, server: Served) -> None:
    """32 clients, queues of 8 and 4, the clients' own retries.

    Every result unique and right, none hung, server and workers each grow by < 50 MiB.
    """
    client, lock, digests = server.client(), threading.Lock(), set[str]()
    memory: list[dict[str, float]] = []
    samples: list[tuple[Any, bytes | None, str]] = []  # of each batch: a request, its picture, and the file's sha256

    def batch(each: Round) -> None:
        scenes = [scene(f"r{each.number}s{index}") for index in range(_SCENES)]
        *_, last = render(scenes, server.client(timeout=LONGEST), each.folder)
        assert isinstance(last, BatchFinished)
        assert (last.done, last.failed) == (_SCENES, 0), f"not all is done: {last}"
        rounds.count("requests sent", last.requests)
        memory.append(server.memory())
        records, _ = read_records(each.folder)
        for made, stage in product(scenes, Stage):
            digest = _checked_digest(each.folder, made, stage, records[made.id].entry(stage))
            with lock:
                assert digest not in digests, f"the {stage} of {made.id} is another request's file"
                digests.add(digest)
        chosen, stage = each.draw.choice(scenes), each.draw.choice(list(Stage))
        picture, entry = each.folder / chosen.picture_name, records[chosen.id].entry(stage)
        sent = picture.read_bytes() if stage is Stage.I2V else None
        samples.append((Asked.of(chosen, stage).request, sent, entry.sha256 if entry else ""))

    _scale(client, 2)
    rounds.do(batch, threads=_CLIENTS)
    rounds.notes["memory"], growth = _growth(memory)
    for part, grown in growth.items():
        if rounds.is_timed and len(rounds.numbers) > 1 and grown >= _GROWTH:
            rounds.fail(f"{part} grew by {grown:.0f} MiB")
    for request, picture, expected in samples:
        if client.send(request, picture).sha256 != expected:
            rounds.fail(f"made again by itself, it is another file: {request}")
        rounds.count("made again alone")
    _scale(client, 1)


def _checked_digest(folder: Path, made: Scene, stage: Stage, entry: Entry | None) -> str:
    """The sha256 of a file that is the one that was asked for."""
    assert entry is not None, f"{made.id} has no {stage} on record"
    path = folder / entry.file
    assert sha256(path) == entry.sha256, f"{entry.file} is not what is on record"
    recipe, request = read_recipe(path) or {}, Asked.of(made, stage).request.model_dump(mode="json")
    wrong = {name for name, value in recipe["parameters"].items() if request[name] not in (value, None)}
    assert not wrong, f"{entry.file} was made with another {sorted(wrong)}: {recipe}"
    assert entry.seed == request["seed"], f"{entry.file}: the answer names the seed {entry.seed}"
    if stage is Stage.I2V:
        picture = sha256(folder / made.picture_name)
        assert recipe["picture"]["sha256"] == picture, f"{entry.file} was made of another picture"
    return entry.sha256


def _growth(memory: list[dict[str, float]]) -> tuple[str, dict[str, float]]:
    """What the memory did under load, once a fifth of the batches was served: in words, and MiB of each part.

    Medians of the first and the last fifth of the samples: each single one has more or less under way.
    """
    begin = len(memory) // 5
    warm = memory[begin:]
    fifth = max(1, len(warm) // 5)
    texts, grown = [], {}
    for part in warm[0]:
        before, after = (statistics.median(each[part] for each in some) for some in (warm[:fifth], warm[-fifth:]))
        grown[part] = after - before
        texts.append(f"{part} {before:,.0f} MiB, later {after:,.0f}")
    since = 2 * _SCENES * (begin + 1)
    return f"{'; '.join(texts)} (medians of {fifth} samples from request {since:,} on)", grown


def _scale(client: Client, workers: int) -> None:
    with ThreadPoolExecutor(len(Stage)) as both:
        list(both.map(lambda stage: client.scale(stage, workers), Stage))


# L2: overflow is refused at once, and in the end all are served.

_BURST = 12
_REFUSED = 0.1  # seconds


@case("L2", count=100, short=1, unit="bursts")
def test_bursts(rounds: Rounds, do_on_servers: DoOnServers) -> None:
    """Bursts of 12 on 1 worker and a queue of 4.

    Overflow refused in < 100 ms (p95), all 12 finish in the end.
    """
    do_on_servers(lambda running: partial(_burst, running, running.client().send(scene("a").t2i_request()).data))
    rounds.limit("refused after", 95, _REFUSED)


def _burst(running: Served, picture: bytes, each: Round) -> None:
    at_once = threading.Barrier(_BURST)

    def one(index: int) -> str:
        client = Client(running.url, key_file=running.key_file, session=_timing(each.rounds), timeout=LONGEST)
        at_once.wait()
        made, failed = _send(client, scene(f"r{each.number}b{index}", steps=2).i2v_request(), picture)
        assert set(failed) <= {"Busy"}, f"failed otherwise than by a full queue: {failed}"
        each.rounds.count("answered")
        each.rounds.count("refused", len(failed))
        assert sha256(made.save(each.folder / f"{index}.mp4")) == made.sha256, "the file is not what was answered"
        return made.sha256

    with ThreadPoolExecutor(_BURST) as pool:
        digests = list(pool.map(one, range(_BURST)))
    assert len(set(digests)) == _BURST, "two requests got the same file"


def _timing(rounds: Rounds) -> requests.Session:
    """A session as the client has it, which measures how soon a refusal comes."""

    def note(response: requests.Response, **_: Any) -> None:
        if response.status_code == 503:
            rounds.measure("refused after", response.elapsed.total_seconds())

    session = plain_session()
    session.hooks["response"].append(note)
    return session


def _send(client: Client, request: Any, picture: bytes) -> tuple[Generated, list[str]]:
    """A request's file, with the retries of a batch, and the error of each try but the last, by class."""
    usual, failed = RenderOptions(), list[str]()
    tries = Tries(usual.retries, usual.patience, time.monotonic)
    while True:
        tries.begin()
        try:
            return client.send(request, picture, on_event=lambda event: None), failed
        except CloudVidError as error:
            if not tries.allow(error):
                raise
            failed.append(type(error).__name__)
        time.sleep(backoff(len(failed)))


# F1: a worker is killed outright at a random moment of a request, which costs at most one more inference.

_RECOVERY = 10.0  # seconds
_NOT_MADE = {"Busy", "Unreachable"}
"""Failures of a request that no worker had begun."""
_VICTIM = scene("victim", steps=8, frames=6)


@case("F1", count=100, short=2, unit="kills")
def test_killed_workers(rounds: Rounds, do_on_servers: DoOnServers) -> None:
    """Worker killed with -9 at a random moment of a request.

    At most 1 more inference each, a new worker is ready after < 10 s (p95).
    """
    do_on_servers(_kills)
    for kind in KINDS:
        rounds.limit(f"recovery, {kind}", 95, _RECOVERY)


def _kills(running: Served) -> Work:
    """What kills a worker, once it is known what an undisturbed scene makes, and how many seconds each stage takes."""
    began, seconds = dict[Stage, float](), dict[Stage, float]()
    for name in ("warm up", "undisturbed"):  # the first request of a worker takes longer than its others
        folder = running.folder / f"{name} scene"
        for event in render([_VICTIM], running.client(), folder):
            if isinstance(event, StageStarted):
                began[event.stage] = time.monotonic()
            elif isinstance(event, StageDone):
                seconds[event.stage] = time.monotonic() - began[event.stage]
    return partial(_kill, running, pictures_and_clips(folder), seconds)


def _kill(running: Served, expected: dict[str, bytes], seconds: dict[Stage, float], each: Round) -> None:
    stage = list(Stage)[each.number % 2]
    until(lambda: len(running.pids(stage)) == 1, f"{stage} has one worker")
    (pid,) = running.pids(stage)
    killed_at: list[float] = []

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        killed_at.append(time.monotonic())

    timer = threading.Timer(each.draw.uniform(0.0, seconds[stage]), kill)
    failed: list[str] = []
    for event in render([_VICTIM], running.client(), each.folder):
        if isinstance(event, StageStarted) and (event.stage, event.attempt) == (stage, 1):
            timer.start()
        elif isinstance(event, StageRetried):
            failed.append(event.error)
    timer.join()
    until(lambda: running.pids(stage) - {pid}, f"{stage} has a new worker")
    each.rounds.measure(f"recovery, {running.kind}", time.monotonic() - killed_at[0])
    more = [error for error in failed if error not in _NOT_MADE]
    each.rounds.count("inferences again", len(more))
    assert len(more) <= 1, f"made {len(more) + 1} times: {failed}"
    assert pictures_and_clips(each.folder) == expected, "not the files of an undisturbed scene"


# F2: the server is ended in mid-batch, by SIGTERM or SIGKILL, and started again with new keys. The batch goes on.

_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
_BATCH = [scene(f"s{index}", steps=4, frames=4) for index in range(3)]
_LATEST = 0.5  # seconds from the beginning of a request to the end of its server
_GONE = 2.0  # seconds


@case("F2", count=50, short=2, unit="restarts")
def test_restarts(rounds: Rounds, do_on_servers: DoOnServers) -> None:
    """Server ended in mid-batch (SIGTERM, SIGKILL in turn), started again with new keys.

    Nothing lost, no worker alive 2 s after the server's end.
    """
    do_on_servers(_restarts)
    rounds.limit("workers gone after it", 100, _GONE)


def _restarts(running: Served) -> Work:
    """What ends and starts a server, once it is known what an undisturbed batch makes."""
    undisturbed = running.folder / "undisturbed batch"
    list(render(_BATCH, running.client(), undisturbed))
    expected = pictures_and_clips(undisturbed)

    def work(each: Round) -> None:
        try:
            _restart(each, running, expected)
        finally:
            if not (running.process.pid_file.is_file() and running.processes()[0]):
                running.process.stop()
                running.start()

    return work


def _restart(each: Round, running: Served, expected: dict[str, bytes]) -> None:
    sign = _SIGNALS[each.number % 2]
    keys = running.key_file.read_text()
    victim, delay = each.draw.randrange(2 * len(_BATCH) - 1), each.draw.uniform(0.0, _LATEST)
    begun = threading.Event()

    def batch() -> BatchEvent | None:
        started, last = 0, None
        try:
            for last in render(_BATCH, running.client(timeout=LONGEST), each.folder, wait=lambda attempt: 0.5):
                started += isinstance(last, StageStarted) and last.attempt == 1
                if started > victim:
                    begun.set()
        finally:
            begun.set()
        return last

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(batch)
        begun.wait()
        time.sleep(delay)  # the moment is random
        _end_and_start(each, running, sign)
        last = ending.result()
    assert isinstance(last, BatchFinished), f"not all is done: {last}"
    assert (last.done, last.failed) == (len(_BATCH), 0), f"not all is done: {last}"
    assert pictures_and_clips(each.folder) == expected, "not the files of an undisturbed batch"
    assert running.key_file.read_text() != keys, "the keys are the old ones"
    each.rounds.count(f"{sign.name}, {running.kind}")
    each.rounds.count("in mid-batch, requests sent again", last.requests > 2 * len(_BATCH))


def _end_and_start(each: Round, running: Served, sign: signal.Signals) -> None:
    (java,), workers = running.processes()
    began = time.monotonic()
    java.send_signal(sign)
    alive = alive_after([java], seconds=60)
    each.rounds.measure("server gone after", time.monotonic() - began)
    began = time.monotonic()
    alive += alive_after(workers, seconds=30)
    each.rounds.measure("workers gone after it", time.monotonic() - began)
    running.process.stop()
    began = time.monotonic()
    running.start()
    each.rounds.measure(f"ready again after, {running.kind}", time.monotonic() - began)
    assert workers, "there were no workers"
    assert not alive, f"alive long after {sign.name}: {alive}"


# F3: scenes whose steps take longer than the server waits for a sign of life: they fail, the others do not.

_SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 1}
_LARGE: dict[str, Any] = {"width": 2048, "height": 2048, "num_inference_steps": 2}
"""A step of it takes several times the time-out: on one core, or where noise is made."""
_MIXED = {"slow_t2i": (_LARGE, {}), "slow_i2v": (_SMALL, _LARGE), "fast": (_SMALL, {}), "quick": (_SMALL, {})}
"""Two that stall, one in each stage, among two that do not."""


@case("F3", count=10, short=1, unit="batches with 2 stalls")
def test_stalls(rounds: Rounds, do_on_servers: DoOnServers) -> None:
    """Steps that take longer than responseTimeout (3 s).

    The scene fails after 2 tries, the batch goes on.
    """
    do_on_servers(lambda running: partial(_stall, running))


def _stall(running: Served, each: Round) -> None:
    document = []
    for name, (t2i, i2v) in _MIXED.items():
        clip = {"num_frames": 2, "num_inference_steps": 1} | i2v
        document.append({"id": name, "scene_desc": f"{name} of {each.seed}", "t2i_params": t2i, "i2v_params": clip})
    each.draw.shuffle(document)
    running.client().wait_until_ready(timeout=LONGEST)
    events = list(render(parse_scenes(document), running.client(timeout=LONGEST), each.folder))
    assert isinstance(events[-1], BatchFinished)
    assert events[-1].stopped is None, f"the batch ended early: {events[-1].stopped}"
    attempts = Counter((event.scene, event.stage) for event in events if isinstance(event, StageStarted))
    failed = {event.scene: event for event in events if isinstance(event, SceneFailed)}
    done = {event.scene for event in events if isinstance(event, SceneDone)}
    assert done == {"fast", "quick"}, f"done: {sorted(done)}; failed: {failed}"
    for stage in Stage:
        name = f"slow_{stage}"
        assert failed[name].stage is stage, f"{name} failed in another stage: {failed[name]}"
        assert attempts[name, stage] == 2, f"{name} was tried {attempts[name, stage]} times: {failed[name]}"
        each.rounds.count(f"stalls of {stage}, {running.kind}")


# F4: a model that never loads again: the client says so soon, whether it began before or after.

_SAYS = 30.0  # seconds after the server gave the model up


@case("F4", count=5, short=0, unit="models")
def test_unloadable_models(rounds: Rounds, do_on_servers: DoOnServers) -> None:
    """A model that never loads again, in mid-batch and before it.

    The client says so within 30 s of the server's giving up, exit code 3.
    """
    scene_file = write_scenes(rounds.folder / "scenes.json", 40)

    def models(running: Served) -> Work:
        def work(each: Round) -> None:
            stage = each.draw.choice(list(Stage))
            weights = running.models[stage] / "unet"
            aside = weights.with_name("unet aside")
            running.client().wait_until_ready(timeout=SECONDS)
            try:
                _break(each, running, stage, lambda: weights.rename(aside), scene_file)
            finally:
                if aside.exists():
                    aside.rename(weights)
                running.process.stop()
                running.process.spawn(running.store)

        return work

    do_on_servers(models, tiny=3, noise=0)
    rounds.limit("says so after", 100, _SAYS)


def _break(each: Round, running: Served, stage: Stage, break_model: Callable[[], Path], scene_file: Path) -> None:
    """In even rounds the batch has begun before, in odd rounds it begins when the server has given up."""
    folder = each.folder / "out"
    batch = command("run", scene_file, "--output-dir", folder, "--quiet")
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    begin = partial(subprocess.Popen, batch, env=environment(**running.environment), **options)
    is_in_mid_batch = each.number % 2 == 0
    process: subprocess.Popen[str] | None = begin() if is_in_mid_batch else None
    try:
        if process is not None:
            until(lambda: any(folder.glob("*.mp4")), "a clip is made")
        break_model()
        (pid,) = running.pids(stage)
        os.kill(pid, signal.SIGKILL)
        until(lambda: running.client().server.ping(stage) == 500, "the server says that it gave up", SECONDS)
        given_up = time.monotonic()
        process = process or begin()
        _, stderr = process.communicate(timeout=SECONDS)
        each.rounds.measure("says so after", max(0.0, time.monotonic() - given_up))
    finally:
        if process is not None:
            process.kill()
            process.communicate()
    assert process.returncode == 3, f"exit code {process.returncode}: {stderr[-2000:]}"
    assert "workers fail to start" in stderr, f"it does not say what is wrong: {stderr[-2000:]}"
    assert "Traceback" not in stderr, stderr[-2000:]
    each.rounds.count("in mid-batch" if is_in_mid_batch else "before the batch")
