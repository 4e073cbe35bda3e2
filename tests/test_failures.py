"""The failure table: which class each answer gets, and how many POSTs a scene then costs."""

import logging
import threading
from collections import Counter

import pytest

from cloudvid import RenderOptions, ServerUnavailable, parse_scenes, render
from cloudvid.batch import runner
from cloudvid.batch.events import BatchFinished, SceneDone, SceneFailed, StageRetried
from cloudvid.batch.watch import Watch
from cloudvid.endpoints import errors, failures
from cloudvid_schema.protocol import Stage
from support.fake_server import Answer, error
from support.fake_torchserve import fake_torchserve
from support.loopback import client_of

SCENE = {"id": "a", "scene_desc": "a", "t2i_params": {"width": 64, "height": 64, "num_inference_steps": 1}}
FOREVER = None
DIED = "Worker died."

ROWS = [
    # answer, class, tries after the first
    (error(500, "InternalServerException", DIED), "WorkerDied", 1),
    (error(507, "InternalServerException", DIED), "WorkerDied", 1),
    (error(503, "InternalServerException", DIED), "WorkerDied", 1),
    (
        error(503, "ServiceUnavailableException", 'Model "i2v" has no worker to serve inference request.'),
        "Busy",
        FOREVER,
    ),
    (error(503, "ServiceUnavailableException", "Service unavailable: queue is full"), "Busy", FOREVER),
    (error(503, "InternalServerException", "Prediction failed"), "StageFailed", 1),
    (error(503, "InternalServerException", "Invalid model predict output"), "StageFailed", 1),
    (error(503, "InternalServerException", "number of batch response mismatched"), "StageFailed", 1),
    (Answer(503, b"<html>503 Service Temporarily Unavailable</html>"), "Busy", FOREVER),
    (Answer(503, b""), "Busy", FOREVER),
    (Answer(429, b"slow down"), "Busy", FOREVER),
    (error(507, "OutOfMemoryError", "Java heap space"), "Busy", FOREVER),
    (error(507, "OutOfDirectMemoryError", "failed to allocate 16777216 byte(s) of direct memory"), "Busy", FOREVER),
    (error(507, "OutOfMemory", "out of memory; ask for fewer pixels or frames"), "OutOfMemory", 2),
    (error(507, "InternalServerException", "Out of resources"), "OutOfMemory", 2),
    (error(507, "InternalServerException", "System out of memory"), "OutOfMemory", 2),
    (error(500, "StageFailed", "the stage failed (ValueError); the worker's log says why"), "StageFailed", 1),
    (error(500, "InternalServerException", "something else"), "StageFailed", 1),
    (Answer(500, b"<html>Internal Server Error"), "StageFailed", 1),
    (error(400, "UnreadableBody", "body: not JSON"), "Rejected", 0),
    (error(400, "QueryNotPassedOn"), "Rejected", 0),
    (error(400, "BadRequestException"), "Rejected", 0),
    (error(422, "InvalidParameters", "width: must be a multiple of 8, got 1001"), "Rejected", 0),
    (error(415, "UnsupportedMediaType"), "Rejected", 0),
    (error(413, "TooLarge"), "Rejected", 0),
    (Answer(413, b""), "Rejected", 0),
    (error(405, "MethodNotAllowedException"), "Rejected", 0),
    (error(404, "ResourceNotFoundException"), "Rejected", 0),
    (Answer(404, b"<html>not found"), "Rejected", 0),
    (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), "Rejected", 0),
    (Answer(301, b"", {"Location": "/elsewhere"}), "Rejected", 0),
    (Answer(418, b"teapot"), "Rejected", 0),
    (error(404, "ModelNotFoundException", "Model not found: t2i"), "NotReady", 4),
    (Answer(502, b"<html>Bad Gateway"), "Unreachable", FOREVER),
    (error(503, "ServerUnavailable", "the model server is not up"), "Unreachable", FOREVER),
    (Answer(504, b"<html>Gateway Timeout"), "BrokenAnswer", 1),
    (Answer(408, b""), "BrokenAnswer", 1),
    (error(400, "InvalidKeyException", "Token Authorization failed."), "Unauthorized", 3),
    (Answer(401, b"login"), "Unauthorized", 0),
    (Answer(403, b"no"), "Rejected", 0),
    (Answer(200, b"", {"Content-Type": "application/x-ndjson"}), "BrokenAnswer", 2),
    (Answer(200, b'{"event":"started"', {"Content-Type": "application/x-ndjson"}), "BrokenAnswer", 2),
    (Answer(200, b'{"event":"boo"}\n', {"Content-Type": "application/x-ndjson"}), "BrokenAnswer", 2),
    (Answer(200, b"x" * 100, cut=50), "BrokenAnswer", 2),
    (
        Answer(200, b'{"event":"error","code":507,"type":"OutOfMemory","message":"out of memory","errors":[]}\n'),
        "OutOfMemory",
        2,
    ),
    (Answer(200, b'{"event":"error","code":500,"type":"StageFailed","message":"","errors":[]}\n'), "StageFailed", 1),
]


@pytest.mark.parametrize(("answer", "kind", "tries"), ROWS)
def test_each_answer_has_its_class_and_its_number_of_posts(answer, kind, tries, tmp_path):
    """A failure that is waited out is followed here by success at the fifth try."""
    left = [4 if tries is FOREVER else 1000]

    def fault(stage, body):
        left[0] -= 1
        return answer if left[0] >= 0 else None

    with fake_torchserve(fault=fault) as server:
        client = client_of(server)
        events = []
        try:
            for event in render(
                parse_scenes([SCENE]), client, tmp_path, RenderOptions(retries=9), wait=lambda attempt: 0.0
            ):
                events.append(event)
        except ServerUnavailable as fatal:
            assert type(fatal).__name__ == kind
    assert isinstance(events[-1], BatchFinished)
    retried = [event.error for event in events if isinstance(event, StageRetried)]
    if tries is FOREVER:
        assert [event.scene for event in events if isinstance(event, SceneDone)] == ["a"]
        assert retried == [kind] * 4
        assert server.posts[Stage.T2I] == 5
    else:
        assert retried == [kind] * tries
        assert server.posts[Stage.T2I] == 1 + tries
        assert not [event for event in events if isinstance(event, SceneDone)]
        if not issubclass(getattr(errors, kind), ServerUnavailable):
            assert [event.error for event in events if isinstance(event, SceneFailed)] == [kind]


def test_a_stream_cut_while_the_worker_is_down_means_death(tmp_path):
    """TorchServe says no more in the middle of a stream: the connection ends, as where a network has cut it."""
    with fake_torchserve(cut=lambda stage: 10) as server:
        server.states[Stage.T2I] = "WORKER_ERROR"
        client = client_of(server)
        events = list(render(parse_scenes([SCENE]), client, tmp_path, wait=lambda attempt: 0.0))
    assert [event.error for event in events if isinstance(event, StageRetried)] == ["WorkerDied"]
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["WorkerDied"]
    assert server.posts[Stage.T2I] == 2


def test_a_worker_counted_as_down_late_has_died_too(tmp_path):
    """TorchServe ends the answers of a worker that it gives up, and marks it after that."""
    looks = [1_000_000]

    class Late(dict):
        def __getitem__(self, stage):
            looks[0] -= 1
            return "READY" if looks[0] >= 0 else "WORKER_ERROR"

    def cut(stage):
        looks[0] = 2
        return 10

    with fake_torchserve(cut=cut) as server:
        server.states = Late()
        events = list(render(parse_scenes([SCENE]), client_of(server), tmp_path, wait=lambda attempt: 0.0))
    assert [event.error for event in events if isinstance(event, StageRetried)] == ["WorkerDied"]
    assert server.posts[Stage.T2I] == 2


def test_a_stage_is_given_up_after_several_failed_looks():
    """Its requests stay in TorchServe's queue without an answer, so no failure of theirs would ever tell."""
    with fake_torchserve() as server:
        client = client_of(server)
        watch = Watch(client.server, {}, seconds=0.01)
        watch.start()
        try:
            server.states[Stage.T2I] = "UNLOADING"
            assert watch.given_up(Stage.T2I) is None
            server.health = 500
            while (error := watch.given_up(Stage.T2I)) is None:
                pass
            assert "workers fail to start" in str(error)
            assert watch.given_up(Stage.I2V) is None
            server.states[Stage.T2I] = "READY"
            while watch.given_up(Stage.T2I):
                pass
        finally:
            watch.stop()


def test_a_restart_is_not_given_up_for_another_worker():
    """/ping is 500 for good once any worker was given up; this stage's get the time that a restart takes."""
    looks = Counter()
    again = threading.Condition()

    class Counted(dict):
        def __getitem__(self, stage):
            with again:
                looks[stage] += 1
                again.notify_all()
            return super().__getitem__(stage)

    def await_looks(count):
        with again:
            wanted = looks[Stage.T2I] + count
            assert again.wait_for(lambda: looks[Stage.T2I] >= wanted, timeout=60)

    with fake_torchserve() as server:
        server.health = 500
        server.states = Counted(server.states)
        watch = Watch(client_of(server).server, {}, seconds=0.01)
        watch.start()
        try:
            await_looks(2)  # the second begins when the first is over
            server.states[Stage.T2I] = "UNLOADING"
            await_looks(20)
            assert watch.given_up(Stage.T2I) is None
            server.states[Stage.T2I] = "READY"
            server.health = 200
            await_looks(3)
            server.states[Stage.T2I] = "UNLOADING"
            await_looks(3)  # one that saw READY has asked for the server's health before
            server.health = 500
            await_looks(20)
            assert watch.given_up(Stage.T2I)
        finally:
            watch.stop()


@pytest.mark.parametrize(("patience", "posts"), [(0.0, 1), (199.0, 3), (200.0, 3), (201.0, 4)])
def test_patience_ends_the_wait_for_a_server_that_stays_busy(patience, posts, tmp_path):
    now = [0.0]

    def wait(attempt):
        now[0] += 100.0
        return 0.0

    busy = error(503, "ServiceUnavailableException")
    with fake_torchserve(fault=lambda stage, body: busy) as server:
        client = client_of(server)
        options = RenderOptions(patience=patience)
        events = list(render(parse_scenes([SCENE]), client, tmp_path, options, clock=lambda: now[0], wait=wait))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["Busy"]
    assert server.posts[Stage.T2I] == posts


def test_a_request_that_always_kills_the_server_is_given_up(tmp_path):
    """Its answer breaks, and then the server is away, again and again: five restarts are forgiven."""
    turns = [0]

    def fault(stage, body):
        turns[0] += 1
        return Answer(200, b"x", cut=0) if turns[0] % 2 else Answer(502, b"away")

    with fake_torchserve(fault=fault) as server:
        client = client_of(server)
        options = RenderOptions(retries=4)
        with pytest.raises(errors.Unreachable):
            list(render(parse_scenes([SCENE]), client, tmp_path, options, wait=lambda attempt: 0.0))
    assert server.posts[Stage.T2I] == 12


def test_patience_counts_only_the_time_that_the_server_was_away(tmp_path):
    """Busy, then half an hour in the queue, then a restart: the wait begins with the restart."""
    now, answers = [0.0], [error(503, "ServiceUnavailableException"), Answer(502), Answer(502), None]

    def fault(stage, body):
        answer = answers.pop(0) if answers else None
        now[0] += 1800.0 if len(answers) == 2 else 1.0
        return answer

    with fake_torchserve(fault=fault) as server:
        client = client_of(server)
        options = RenderOptions(patience=900.0)
        events = list(
            render(parse_scenes([SCENE]), client, tmp_path, options, clock=lambda: now[0], wait=lambda attempt: 0.0)
        )
    assert events[-1].done == 1


def test_the_cap_counts_failures_of_every_kind_together(tmp_path):
    answers = [
        error(500, "x", DIED),
        error(503, "InternalServerException"),
        error(507, "OutOfMemory"),
        error(507, "OutOfMemory"),
    ]
    queue = iter(answers)
    with fake_torchserve(fault=lambda stage, body: next(queue)) as server:
        client = client_of(server)
        events = list(
            render(parse_scenes([SCENE]), client, tmp_path, RenderOptions(retries=2), wait=lambda attempt: 0.0)
        )
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["OutOfMemory"]
    assert server.posts[Stage.T2I] == 3


def test_the_wait_between_tries_is_jittered_and_bounded():
    waits = [failures.backoff(attempt) for attempt in range(1, 400)]
    assert 0.0 <= min(waits) < max(waits) <= 30.0
    assert max(failures.backoff(1) for _ in range(200)) <= 1.0


def test_every_error_of_the_tree_has_a_row():
    mapped = {row.error for row in (*failures.ANSWERS, *failures.WITHOUT_ANSWER)}
    parents = (errors.StageError, errors.ServerUnavailable)
    leaves = {kind for parent in parents for kind in parent.__subclasses__() if kind.__module__ == errors.__name__}
    assert leaves <= mapped


def test_a_bug_in_a_thread_fails_its_scene_with_traceback(tmp_path, caplog, monkeypatch):
    def broken(data, media_type):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runner, "check_whole", broken)
    with fake_torchserve() as server, caplog.at_level(logging.ERROR, logger="cloudvid"):
        events = list(render(parse_scenes([SCENE]), client_of(server), tmp_path))
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert (failed.error, failed.message) == ("StageError", "t2i: ZeroDivisionError: a bug")
    (record,) = caplog.records
    assert record.name == "cloudvid.batch.runner"
    assert record.exc_info[0] is ZeroDivisionError
