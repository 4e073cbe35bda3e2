"""Workers that are down: when a stage is given up, when a request is, and what a broken stream then means."""

import threading

import pytest

from cloudvid import RenderOptions, Stage, parse_scenes, render
from cloudvid.batch import engine
from cloudvid.batch.events import SceneFailed, StageRetried
from cloudvid.batch.watch import Watch
from cloudvid.endpoints import errors, failures
from cloudvid.server.state import StageStatus, Worker
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of

BUSY = error(503, "ServiceUnavailableException")


class LookedAt:
    """A server whose first stage is looked at when it is told to be, and whose other stage is well."""

    urls = dict.fromkeys(Stage, "http://server")

    def __init__(self):
        self.ready, self.unhealthy = 1, False
        self._may_look, self._looked = threading.Semaphore(0), threading.Semaphore(0)

    def await_look(self, ready=1, unhealthy=False):
        """Have it looked at once more, and return when that is over."""
        self.ready, self.unhealthy = ready, unhealthy
        self._may_look.release()
        assert self._looked.acquire(timeout=60)

    def look(self, stage):
        if stage is not Stage.T2I:
            return status(stage, 1, False)
        self._looked.release()  # the one before is over
        assert self._may_look.acquire(timeout=60)
        return status(stage, self.ready, self.unhealthy)

    def describe(self, stage, timeout):
        return None


def status(stage, ready, unhealthy):
    """The state of a stage of so many workers that are ready, or of one that is not."""
    workers = [Worker(id=str(number), state="ready") for number in range(ready)] or [Worker(id="0", state="loading")]
    return StageStatus(stage=stage, server="http://server", workers=tuple(workers), unhealthy=unhealthy)


@pytest.fixture
def looked_at():
    """A watch that looks whenever it is told to, and the server that it looks at."""
    server, before = LookedAt(), set(threading.enumerate())
    watch = Watch(server, {}, seconds=0.001)
    watch.start()
    assert server._looked.acquire(timeout=60)
    server.threads = [each for each in threading.enumerate() if each.name.startswith("watch") and each not in before]
    server.await_look()
    yield watch, server
    watch.stop()
    server._may_look.release(2)


def test_four_bad_looks_in_a_row_give_a_stage_up(looked_at):
    watch, server = looked_at
    for look in range(1, 5):
        assert watch.given_up(Stage.T2I) is None, look
        server.await_look(ready=0, unhealthy=True)
    assert isinstance(watch.given_up(Stage.T2I), errors.Unhealthy)
    assert watch.given_up(Stage.I2V) is None


@pytest.mark.parametrize("between", [{"ready": 1, "unhealthy": False}, {"ready": 0, "unhealthy": False}])
def test_a_better_look_between_begins_the_count_again(looked_at, between):
    watch, server = looked_at
    for _ in range(2):
        for _ in range(3):
            server.await_look(ready=0, unhealthy=True)
        assert watch.given_up(Stage.T2I) is None
        server.await_look(**between)
    for _ in range(4):
        assert watch.given_up(Stage.T2I) is None
        server.await_look(ready=0, unhealthy=True)
    assert watch.given_up(Stage.T2I)
    server.await_look(ready=1, unhealthy=False)
    assert watch.given_up(Stage.T2I) is None


def test_one_request_more_than_workers_that_are_ready(looked_at):
    watch, server = looked_at
    for ready, requests in ((3, 4), (1, 2), (0, 2), (12, 13)):
        server.await_look(ready=ready, unhealthy=False)
        assert watch.slots[Stage.T2I] == requests


def test_a_watch_that_is_stopped_looks_no_more(looked_at):
    watch, server = looked_at
    server.await_look(ready=2, unhealthy=False)
    watch.stop()
    server._may_look.release()
    for thread in server.threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_a_cut_stream_is_a_death_where_another_worker_lives(tmp_path):
    with fake_torchserve(workers=2, cut=lambda stage: 10) as server:
        server.states[Stage.T2I] = ["READY", "WORKER_ERROR"]
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, wait=lambda attempt: 0.0))
    assert [event.error for event in events if isinstance(event, StageRetried)] == ["WorkerDied"]
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["WorkerDied"]


def test_a_cut_stream_is_broken_where_every_worker_lives(tmp_path):
    with fake_torchserve(workers=2, cut=lambda stage: 10) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, RenderOptions(retries=0)))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["BrokenAnswer"]


def test_a_stall_stays_a_stall_while_a_worker_is_down(tmp_path):
    with fake_torchserve(step_seconds=30) as server:
        server.states[Stage.T2I] = "WORKER_ERROR"
        client = client_of(server, timeout=0.3)
        events = list(render(parse_scenes(scenes(1)), client, tmp_path, RenderOptions(retries=0)))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["Stalled"]


def waits(server, tmp_path, script):
    """Events of a scene whose server is busy; between tries, time passes and its workers go down or come up.

    Args:
        script: for each wait, seconds that pass and whether the workers are down when it ends.
    """
    now, left = [0.0], list(script)

    def wait(attempt):
        seconds, is_down = left.pop(0)
        now[0] += seconds
        state(is_down)
        return 0.0

    def state(is_down):
        server.states[Stage.T2I], server.health = ("UNLOADING", 500) if is_down else ("READY", 200)

    server.fault = lambda stage, body: BUSY if left and stage is Stage.T2I else None
    batch = render(parse_scenes(scenes(1)), client_of(server), tmp_path, wait=wait, clock=lambda: now[0])
    next(batch)
    state(True)
    return list(batch)


def test_a_minute_without_workers_gives_a_request_up(tmp_path):
    with fake_torchserve() as server, pytest.raises(errors.Unhealthy, match=r"^t2i: workers fail to start"):
        waits(server, tmp_path, [(30.0, True), (29.9, True), (0.1, True), (0.0, True), (0.0, True)])
    assert server.posts[Stage.T2I] == 4


def test_a_minute_down_begins_again_after_a_healthy_answer(tmp_path):
    with fake_torchserve() as server:
        events = waits(server, tmp_path, [(59.0, False), (1.0, True), (59.0, True), (0.5, False), (1.0, False)])
    assert events[-1].done == 1
    assert server.posts[Stage.T2I] == 6


def test_a_request_waits_on_while_a_worker_is_left(tmp_path):
    """/ping is 500 for good once any worker was given up, perhaps of the other stage."""
    now, left = [0.0], [4]

    def busy(stage, body):
        left[0] -= 1
        return BUSY if left[0] >= 0 else None

    def wait(attempt):
        now[0] += 59.0
        return 0.0

    with fake_torchserve(fault=busy) as server:
        server.health = 500
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, wait=wait, clock=lambda: now[0]))
    assert events[-1].done == 1


def test_a_stage_given_up_leaves_no_request_behind(tmp_path, monkeypatch):
    """TorchServe keeps the request in its queue; the batch ends without its answer."""
    monkeypatch.setattr(engine, "Watch", lambda *arguments: Watch(*arguments, seconds=0.01))
    over = threading.Event()

    def hold(stage, body):
        server.states[Stage.T2I], server.health = "UNLOADING", 500
        over.wait(timeout=60)

    with fake_torchserve(fault=hold) as server:
        events = []
        with pytest.raises(errors.Unhealthy, match="workers fail to start"):
            for event in render(parse_scenes(scenes(1)), client_of(server), tmp_path):
                events.append(event)
        assert not over.is_set()
        over.set()
    assert (events[-1].event, events[-1].done, events[-1].requests) == ("batch_finished", 0, 1)


def test_the_wait_between_tries_doubles_to_half_a_minute():
    """Random within a bound: of 300 draws, some come near it."""
    for attempt, bound in ((1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (30, 30.0), (2000, 30.0)):
        draws = [failures.backoff(attempt) for _ in range(300)]
        assert bound * 0.9 < max(draws) <= bound, attempt
        assert 0.0 <= min(draws) < bound * 0.1, attempt


def test_each_try_says_its_number_and_its_wait(tmp_path):
    asked = []

    def wait(attempt):
        asked.append(attempt)
        return attempt * 0.0012

    with fake_torchserve(fault=lambda stage, body: BUSY if len(asked) < 3 else None) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, RenderOptions(retries=0), wait=wait))
        posts = server.posts.total()
    assert asked == [1, 2, 3]
    assert [event.attempt for event in events if event.event == "stage_started"] == [1, 2, 3, 4, 1]
    assert [event.wait_seconds for event in events if isinstance(event, StageRetried)] == [0.001, 0.002, 0.004]
    assert events[-1].requests == posts == 5
