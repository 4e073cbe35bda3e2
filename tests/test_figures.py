"""Numbers that a run shows: pace, seconds, counts. Each is worked out here by hand."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from cloudvid import Client, RenderOptions, Stage, parse_scenes, render
from cloudvid.batch.events import (
    BatchFinished,
    BatchStarted,
    SceneDone,
    SceneSkipped,
    StageDone,
    StageProgress,
    StageStarted,
)
from cloudvid.cli.views import PlainView
from support.command_line import clean_environment
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of, connection

T2I, I2V = Stage.T2I, Stage.I2V


class Shown:
    """What a plain view prints of events that come at given seconds."""

    def __init__(self, scenes):
        self._now, self._out = 0.0, io.StringIO()
        self._view = PlainView(self._out, clock=lambda: self._now)
        self.at(0, BatchStarted(scenes=scenes, output_dir="out"))

    def at(self, second, event):
        """The lines that the event adds."""
        self._now = float(second)
        before = len(self._out.getvalue())
        self._view.show(event)
        return self._out.getvalue()[before:].splitlines()


def started(scene, stage, attempt=1):
    return StageStarted(scene=scene, stage=stage, reason="new", attempt=attempt)


def progress(scene, stage, step, phase="denoise", steps=25):
    return StageProgress(scene=scene, stage=stage, phase=phase, step=step, steps=steps)


def done(scene, stage, seconds=1.0):
    return StageDone(
        scene=scene, stage=stage, path=f"out/{scene}", size=12345, sha256="0", seed=7, model="m@1", seconds=seconds
    )


def test_the_pace_is_the_time_between_two_steps():
    shown = Shown(scenes=2)
    shown.at(0, started("a", T2I))
    assert shown.at(100, progress("a", T2I, 1)) == ["  a: t2i denoise 1/25"], "the time before it is the queue's"
    assert shown.at(103, progress("a", T2I, 2)) == []
    assert shown.at(118, progress("a", T2I, 3)) == ["  a: t2i denoise 3/25, 15.00 s/step"]
    assert shown.at(134, progress("a", T2I, 1, phase="encode", steps=1)) == ["  a: t2i encode 1/1"]
    shown.at(135, started("a", T2I, attempt=2))
    assert shown.at(200, progress("a", T2I, 1)) == ["  a: t2i denoise 1/25, 15.00 s/step"], "of the steps before"
    assert shown.at(220, progress("a", I2V, 1)) == ["  a: i2v denoise 1/25"], "each stage has its own pace"


def test_the_time_left_of_the_batch_counts_down_between_estimates():
    shown = Shown(scenes=4)
    shown.at(0, started("a", I2V))
    told = progress("a", I2V, 1).model_copy(update={"seconds_left": 360.0})
    assert shown.at(120, told) == ["  a: i2v denoise 1/25, 0:06:00 left of the batch"]
    (line,) = shown.at(180, progress("a", I2V, 2))
    assert line == "  a: i2v denoise 2/25, 60.00 s/step, 0:05:00 left of the batch"
    (line,) = shown.at(900, progress("a", I2V, 3, phase="decode"))
    assert line == "  a: i2v decode 3/25, 0:00:00 left of the batch"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"done": 3}, "3 of 3 scenes done (12 s)"),
        ({"done": 1, "skipped": 2}, "3 of 3 scenes done, 2 of them before (12 s)"),
        ({"done": 1, "failed": 2}, "1 of 3 scenes done, 2 failed (12 s)"),
        ({"skipped": 1, "stopped": "interrupted"}, "1 of 3 scenes done, 1 of them before, stopped: interrupted (12 s)"),
    ],
)
def test_a_summary_counts_what_was_done_before_too(counts, text):
    finished = BatchFinished(
        **{"scenes": 3, "done": 0, "skipped": 0, "failed": 0, "requests": 9, "seconds": 12.3, **counts}
    )
    assert Shown(scenes=3).at(1, finished) == [text]


def test_a_files_line_has_its_size_seconds_and_seed():
    assert Shown(scenes=1).at(1, done("a", T2I, seconds=3.25)) == ["1/1  out/a  12,345 bytes, 3.2 s, seed 7"]


def test_the_last_event_counts_each_outcome(tmp_path):
    now = [100.0]
    document = scenes(6)
    with fake_torchserve() as server:
        list(render(parse_scenes(document[:3]), client_of(server), tmp_path))
    refuse = error(422, "InvalidParameters")
    busy = [error(503, "ServiceUnavailableException")]

    def fault(stage, body):
        if b"scene 4" in body:
            return refuse
        return busy.pop() if busy and b"scene 3" in body else None

    with fake_torchserve(fault=fault) as server:
        batch = render(parse_scenes(document), client_of(server), tmp_path, clock=lambda: now[0], wait=lambda n: 0.0)
        next(batch)
        now[0] = 103.4567
        last = list(batch)[-1]
        assert server.posts.total() == last.requests
    assert last == BatchFinished(scenes=6, done=2, skipped=3, failed=1, requests=6, seconds=3.457)


def test_an_interrupted_run_counts_scenes_that_were_skipped(tmp_path):
    document = scenes(3)
    (tmp_path / "scenes.json").write_text(json.dumps(document))
    with fake_torchserve() as server:
        list(render(parse_scenes(document[:2]), client_of(server), tmp_path / "out"))
    with fake_torchserve(step_seconds=600) as server:
        command = [sys.executable, "-m", "cloudvid.cli", "run", "scenes.json", "--output-dir", "out", "--json"]
        process = subprocess.Popen(
            [*command, *connection(server)],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen = {"scene_skipped": 0, "stage_started": 0}
        for line in process.stdout:
            kind = json.loads(line)["event"]
            seen[kind] = seen.get(kind, 0) + 1
            if seen["scene_skipped"] == 2 and seen["stage_started"]:
                break
        server.await_post(1, lambda: process.poll() is None)  # it is counted before it is sent
        os.kill(process.pid, signal.SIGINT)
        said, text = process.communicate(timeout=60)
    last = json.loads(said.splitlines()[-1])
    assert {name: last[name] for name in ("scenes", "done", "skipped", "failed", "requests")} == {
        "scenes": 3,
        "done": 0,
        "skipped": 2,
        "failed": 0,
        "requests": 1,
    }
    assert "2 of 3 scenes done, 2 of them before, stopped: interrupted" in text


def test_a_scene_looked_at_twice_counts_as_skipped_once(tmp_path):
    """Its model is known only from another scene's answer; then it is looked at again."""
    document = scenes(3)
    with fake_torchserve() as server:
        list(render(parse_scenes(document[:2]), client_of(server), tmp_path))
        unseen = Client(server.url, management="http://127.0.0.1:1", token="t")
        events = list(render(parse_scenes(document), unseen, tmp_path))
    assert (events[-1].done, events[-1].skipped, events[-1].failed) == (1, 2, 0)


def test_a_batch_counts_its_requests_and_seconds(tmp_path):
    faults = iter([error(503, "ServiceUnavailableException")] * 3)
    with fake_torchserve(fault=lambda stage, body: next(faults, None)) as server:
        batch = render(
            parse_scenes(scenes(2)),
            client_of(server),
            tmp_path,
            RenderOptions(retries=0),
            clock=lambda: 50.0 + 2.0 * server.posts.total(),
            wait=lambda attempt: 0.0,
        )
        events = list(batch)
        assert events[-1].requests == server.posts.total() == 7
    assert events[-1].seconds == 14.0
    assert (events[-1].scenes, events[-1].done) == (2, 2)


def test_a_file_takes_the_seconds_that_the_server_spent(tmp_path):
    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    made = [event for event in events if isinstance(event, StageDone)]
    assert [event.seconds for event in made] == [0.025, 0.025], "two steps of 10 ms, and 5 ms to decode"
    assert [event.size for event in made] == [
        (tmp_path / name).stat().st_size for name in ("s0_base_image.png", "s0_video.mp4")
    ]


def test_only_the_scenes_that_were_asked_for_are_counted(tmp_path):
    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(3)), client_of(server), tmp_path, RenderOptions(only=["s1"])))
    assert isinstance(events[0], BatchStarted)
    assert (events[0].scenes, events[-1].scenes, events[-1].done) == (1, 1, 1)


def test_timings_reach_the_caller_in_milliseconds():
    with fake_torchserve() as server:
        client, expected = client_of(server), {"denoise": 30.0, "decode": 5.0}
        values = {"width": 64, "height": 64, "num_inference_steps": 3}
        assert client.text_to_image("a", **values).timings == expected
        assert client.text_to_image("a", on_event=lambda event: None, **values).timings == expected


def test_a_scene_whose_picture_came_back_counts_as_done(tmp_path):
    """Its clip was there all the time."""
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(2)), client_of(server), tmp_path))
        (tmp_path / "s0_base_image.png").unlink()
        events = list(render(parse_scenes(scenes(2)), client_of(server), tmp_path))
    assert [event.scene for event in events if isinstance(event, SceneDone)] == ["s0"]
    assert [event.scene for event in events if isinstance(event, SceneSkipped)] == ["s1"]
    assert (events[-1].done, events[-1].skipped, events[-1].requests) == (1, 1, 1)
