"""A batch that is ended in the middle of a request: nothing more is sent or stored."""

import errno
import os
import signal
import threading

import pytest

from cloudvid import Client, OutputError, RenderOptions, parse_scenes, render
from cloudvid.batch.events import (
    BatchFinished,
    BatchStarted,
    ModelsKnown,
    SceneDone,
    SceneFailed,
    StageDone,
    StageProgress,
    StageRetried,
    StageStarted,
)
from cloudvid.batch.watch import Watch
from cloudvid.endpoints import errors
from cloudvid_schema.files import Disk
from cloudvid_schema.protocol import Stage
from support.fake_server import Answer, error
from support.fake_torchserve import fake_torchserve
from support.folders import contents, leftovers, scenes
from support.loopback import client_of


def held_before_its_result(server, stage):
    """Lets a stage's worker send every step of a request, and its file only once the event is set."""
    go_on = threading.Event()
    (worker,) = server.pool[stage]
    answer = worker.answer

    def held(row, headers, send):
        answered = answer(row, headers, send)
        if row:
            assert go_on.wait(timeout=60)
        return answered

    worker.answer = held
    return go_on


def thread_of(job):
    """The thread of a running job, which is named for it."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == job]
    return thread


def await_end(thread):
    thread.join(timeout=60)
    assert not thread.is_alive()


def is_last_step(event, stage):
    return isinstance(event, StageProgress) and event.stage is stage and event.step == event.steps


def test_an_answer_that_comes_after_the_end_is_not_stored(tmp_path):
    with fake_torchserve() as server:
        go_on = held_before_its_result(server, Stage.I2V)
        batch = render(parse_scenes(scenes(1)), client_of(server), tmp_path)
        for event in batch:
            if is_last_step(event, Stage.I2V):
                break
        thread = thread_of("i2v s0")
        batch.close()
        left = contents(tmp_path)
        go_on.set()
        await_end(thread)
    assert contents(tmp_path) == left
    assert "s0_video.mp4" not in left
    assert not leftovers(tmp_path)


def test_an_answer_after_a_failed_batch_is_not_stored(tmp_path):
    """The batch fails fast at one scene while another's file is on its way."""
    may_fail = threading.Event()

    def fault(stage, body):
        return error(422, "InvalidParameters") if b"scene 1" in body and may_fail.wait(timeout=60) else None

    with fake_torchserve(fault=fault) as server:
        go_on = held_before_its_result(server, Stage.T2I)
        events = []
        for event in render(parse_scenes(scenes(2)), client_of(server), tmp_path, RenderOptions(fail_fast=True)):
            events.append(event)
            if is_last_step(event, Stage.T2I):
                may_fail.set()
        thread, left = thread_of("t2i s0"), contents(tmp_path)
        go_on.set()
        await_end(thread)
    assert [event.scene for event in events if isinstance(event, SceneFailed)] == ["s1"]
    assert not [event for event in events if isinstance(event, StageDone)]
    assert contents(tmp_path) == left
    assert "s0_base_image.png" not in left


def test_a_request_is_let_go_at_its_next_step(tmp_path):
    """Its file never comes: the client leaves as soon as the server says anything more."""
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    with fake_torchserve() as server:
        (worker,) = server.pool[Stage.T2I]
        answer = worker.answer

        def held(row, headers, send):
            def send_slowly(part):
                if begun.is_set():
                    assert go_on.wait(timeout=60)
                send(part)
                begun.set()

            answered = answer(row, headers, send_slowly)
            return answered if not row or over.wait(timeout=60) else None

        worker.answer = held
        batch = render(parse_scenes(scenes(1)), client_of(server), tmp_path)
        while not isinstance(next(batch), StageStarted):
            pass
        assert begun.wait(timeout=60)
        thread = thread_of("t2i s0")
        batch.close()
        go_on.set()
        thread.join(timeout=30)
        has_left = not thread.is_alive()
        over.set()
    assert has_left


def test_a_server_that_is_away_is_not_asked_again(tmp_path):
    """Of six scenes two are under way: one worker's, and one that waits."""
    with fake_torchserve(fault=lambda stage, body: Answer(401, b"log in")) as server:
        with pytest.raises(errors.Unauthorized):
            list(render(parse_scenes(scenes(6)), client_of(server), tmp_path))
        assert server.posts == {Stage.T2I: 2}


def test_a_disk_that_fails_ends_the_batch_at_once(tmp_path):
    class Failing(Disk):
        def fsync(self, handle):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    events = []
    with fake_torchserve() as server:
        with pytest.raises(OutputError, match="Input/output error"):
            for event in render(parse_scenes(scenes(6)), client_of(server), tmp_path, disk=Failing()):
                events.append(event)
        assert server.posts.total() <= 2
    assert (events[-1].done, events[-1].failed) == (0, 0), "no scene is at fault"
    assert "Input/output error" in events[-1].stopped
    assert not leftovers(tmp_path)


def test_a_request_that_waits_is_not_sent_after_the_end(tmp_path):
    busy = error(503, "ServiceUnavailableException")
    with fake_torchserve(fault=lambda stage, body: busy) as server:
        batch = render(parse_scenes(scenes(1)), client_of(server), tmp_path, wait=lambda attempt: 3600.0)
        while not isinstance(next(batch), StageRetried):
            pass
        thread = thread_of("t2i s0")
        batch.close()
        await_end(thread)
        assert server.posts.total() == 1


@pytest.mark.parametrize("after", ["batch_started", "models_known", "stage_started", "stage_done", "scene_done"])
def test_an_interrupted_batch_ends_with_its_last_event(after, tmp_path):
    with fake_torchserve() as server:
        batch = render(parse_scenes(scenes(4)), client_of(server), tmp_path)
        events = []
        while not events or events[-1].event != after:
            events.append(next(batch))
        last = batch.throw(KeyboardInterrupt())
        assert isinstance(last, BatchFinished)
        with pytest.raises(KeyboardInterrupt):
            next(batch)
    done = [event.scene for event in events if isinstance(event, SceneDone)]
    assert (last.stopped, last.scenes, last.done, last.failed) == ("interrupted", 4, len(done), 0)
    assert (tmp_path / "index.html").exists()
    assert not (tmp_path / ".cloudvid.lock").read_bytes(), "the folder is free"


def test_an_interrupt_during_a_wait_yields_the_last_event(tmp_path):
    """As Ctrl-C does, it reaches the generator itself."""
    with fake_torchserve(step_seconds=600) as server:
        batch = render(parse_scenes(scenes(1)), client_of(server), tmp_path)
        while not isinstance(next(batch), StageStarted):
            pass
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            for event in batch:
                last = event
    assert isinstance(last, BatchFinished)
    assert (last.stopped, last.done, last.requests) == ("interrupted", 0, 1)


def test_a_batch_starts_at_once_and_names_the_models_later(tmp_path):
    """The start of a batch is reported at once, however long the server takes."""
    is_asked, may_answer = threading.Event(), threading.Event()
    with fake_torchserve() as server:
        client = client_of(server)
        look = client.server.look

        def slow_look(stage):
            is_asked.set()
            assert may_answer.wait(timeout=60)
            return look(stage)

        client.server.look = slow_look
        batch = render(parse_scenes(scenes(1)), client, tmp_path)
        started = next(batch)
        assert isinstance(started, BatchStarted)
        assert not is_asked.is_set(), "no network before the first event"
        threading.Timer(0.3, may_answer.set).start()
        known = next(batch)
        assert may_answer.is_set()
        assert known == ModelsKnown(models={Stage.T2I: "noise-t2i@1", Stage.I2V: "noise-i2v@1"})
        assert list(batch)[-1].done == 1


def test_nothing_is_asked_or_sent_by_a_constructor():
    class Server:
        urls = dict.fromkeys(Stage, "http://server")

        def __getattr__(self, name):
            raise AssertionError(name)

    before = set(threading.enumerate())
    Watch(Server(), {})
    Client("http://127.0.0.1:1", token="t")
    assert set(threading.enumerate()) == before
