"""What a plan says of time, steps and sizes, worked out here by hand."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from cloudvid import RenderOptions, Stage, parse_scenes, render
from cloudvid.batch.estimate import Estimate, Task
from cloudvid.batch.plan import make_plan
from cloudvid_schema.protocol import Description
from support import ROOT
from support.command_line import cloudvid
from support.fake_management import Fake, worker
from support.fake_server import fake_server
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of, connection

T2I, I2V = Stage.T2I, Stage.I2V
SCENE = {
    "id": "a",
    "scene_desc": "a",
    "t2i_params": {"width": 640, "height": 400, "num_inference_steps": 10},
    "i2v_params": {"num_inference_steps": 20},
}
PICTURE_PIXELS, FRAME_PIXELS = 0.256, 0.24576  # millions: 640×400, and 640×384 of the clip
PAINTER = Description(stage=T2I, model="p@1", seconds={"denoise": 2.0, "decode": 3.0})
ANIMATOR = Description(stage=I2V, model="a@1", seconds={"denoise": 0.5, "decode": 0.25}, num_frames=14)
DRAWN = PICTURE_PIXELS * (2.0 * 10 + 3.0)
ANIMATED = FRAME_PIXELS * 14 * (0.5 * 20 + 0.25)


def plan(folder, *document, **descriptions):
    known = {Stage(name): description for name, description in descriptions.items()}
    return make_plan(parse_scenes(list(document)), folder, known)


def test_an_estimate_is_pixels_by_steps_by_measured_seconds(tmp_path):
    made = plan(tmp_path, SCENE, t2i=PAINTER, i2v=ANIMATOR)
    assert made.seconds == pytest.approx(DRAWN + ANIMATED)
    assert [stage.steps for stage in made.stages] == [10, 20]
    assert made.steps == 30


@pytest.mark.parametrize(
    ("changes", "described", "pixels", "frames", "steps"),
    [
        ({"num_frames": 5}, {}, FRAME_PIXELS, 5, 20),
        ({}, {"num_frames": None}, FRAME_PIXELS, 25, 20),
        ({"width": 128}, {}, 128 * 64 / 1e6, 14, 20),
        ({"width": 1024, "height": 576}, {}, 1024 * 576 / 1e6, 14, 20),
        ({"num_inference_steps": 1}, {}, FRAME_PIXELS, 14, 1),
    ],
)
def test_a_clips_estimate_follows_its_size_frames_and_steps(tmp_path, changes, described, pixels, frames, steps):
    scene = {**SCENE, "i2v_params": {**SCENE["i2v_params"], **changes}}
    made = plan(tmp_path, scene, t2i=PAINTER, i2v=ANIMATOR.model_copy(update=described))
    assert made.seconds == pytest.approx(DRAWN + pixels * frames * (0.5 * steps + 0.25))


def test_a_plan_is_a_schedule_of_pictures_and_clips(tmp_path):
    for workers, seconds in (
        ({}, DRAWN + 2 * ANIMATED),
        ({T2I: 1, I2V: 1}, DRAWN + 2 * ANIMATED),
        ({T2I: 1, I2V: 2}, 2 * DRAWN + ANIMATED),
        ({T2I: 2, I2V: 2}, DRAWN + ANIMATED),
        ({T2I: 0, I2V: 0}, DRAWN + 2 * ANIMATED),
    ):
        known = {T2I: PAINTER, I2V: ANIMATOR}
        made = make_plan(parse_scenes([SCENE, {**SCENE, "id": "b"}]), tmp_path, known, workers=workers)
        assert made.seconds == pytest.approx(seconds), workers


def test_no_estimate_where_a_stage_that_runs_is_unmeasured(tmp_path):
    assert plan(tmp_path, SCENE, i2v=ANIMATOR).seconds is None
    assert plan(tmp_path, SCENE, t2i=PAINTER).seconds is None


def test_what_is_skipped_takes_no_time(tmp_path):
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    (tmp_path / "s0_video.mp4").unlink()
    animator = Description(stage=I2V, model="noise-i2v@1", seconds={"denoise": 1.0, "decode": 1.0}, num_frames=2)
    made = plan(tmp_path, *scenes(1), i2v=animator)
    assert [(stage.reason, stage.steps) for stage in made.stages] == [(None, 0), ("file missing", 2)]
    assert made.seconds == pytest.approx(64 * 64 * 2 / 1e6 * 3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(Path.unlink, "file missing"), (lambda path: path.write_bytes(b"half"), "file damaged")],
    ids=["missing", "damaged"],
)
def test_the_clip_of_a_picture_that_is_lost_stays(damage, reason, tmp_path):
    """The picture comes out the same."""
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    damage(tmp_path / "s0_base_image.png")
    made = plan(tmp_path, *scenes(1))
    assert [(stage.reason, stage.steps) for stage in made.stages] == [(reason, 2), (None, 0)]
    made = plan(tmp_path, *scenes(1, seed=5))
    assert [stage.reason for stage in made.stages] == ["parameters changed", "picture changed"]


def test_the_plan_command_prints_steps_and_seconds(tmp_path):
    fake = Fake(i2v=(9001, 9002))
    fake.workers["i2v"].append(worker(9003, "UNLOADING"))
    fake.description["seconds"] = {"denoise": 30.0, "decode": 60.0}
    fake.description["num_frames"] = 10
    (tmp_path / "scenes.json").write_text(json.dumps([SCENE, {**SCENE, "id": "b"}]))
    with fake_server(fake) as server:
        done = cloudvid("plan", "scenes.json", *connection(server), cwd=tmp_path)
    seconds = 2 * PICTURE_PIXELS * (30 * 10 + 60) + FRAME_PIXELS * 10 * (30 * 20 + 60)
    last = done.stdout.splitlines()[-1]
    assert last == f"4 of 4 files to make, 60 steps; about {seconds:.0f} s at the server's own pace"


@pytest.mark.parametrize(
    ("picture", "clip", "how"),
    [
        ((256, 128), {"width": 128, "height": 64}, "resized"),
        ((64, 64), {"width": 128, "height": 128, "fit": "pad"}, "resized"),
        ((128, 64), {"width": 64, "height": 128}, "cropped"),
        ((128, 64), {"width": 64, "height": 128, "fit": "pad"}, "padded"),
        ((128, 64), {"width": 64, "height": 64, "fit": "stretch"}, "stretched"),
    ],
)
def test_a_plan_says_how_a_picture_is_fitted(picture, clip, how, tmp_path):
    """One of the clip's aspect is only resized, whatever the fit."""
    scene = {**SCENE, "t2i_params": dict(zip(("width", "height"), picture, strict=True)), "i2v_params": clip}
    sizes = f"the picture is {picture[0]}×{picture[1]}, the clip {clip['width']}×{clip['height']}"
    assert plan(tmp_path, scene).warnings == [f"a: {sizes}: it will be {how}"]


def test_a_clip_of_its_pictures_size_needs_no_warning(tmp_path):
    assert plan(tmp_path, *scenes(1)).warnings == []


# --- while a batch runs


class Run:
    """A batch as the engine sends it, with steps of its own pace, and what was said to be left after each of them."""

    def __init__(self, scenes, estimate, steps, rest, workers, clock):
        self.told = []
        self._estimate, self._clock, self._steps, self._rest = estimate, clock, steps, rest
        waiting = {T2I: [f"s{number}" for number in range(scenes)], I2V: []}
        running = []  # when its next step is done, how many are, its stage and scene
        while waiting[T2I] or waiting[I2V] or running:
            for stage in (I2V, T2I):
                while waiting[stage] and sum(job[2] is stage for job in running) < workers[stage]:
                    running.append((clock() + self._seconds(stage, 0), 0, stage, waiting[stage].pop(0)))
            running.sort(key=lambda job: job[0])
            at, done, stage, scene = running.pop(0)
            clock.now = at
            if done < STEPS[stage]:
                estimate.step(scene, stage, "denoise", done + 1, STEPS[stage])
                running.append((at + self._seconds(stage, done + 1), done + 1, stage, scene))
            else:
                estimate.end(scene, stage)
                if stage is T2I:
                    waiting[I2V].append(scene)
            self.told.append((at, estimate.left()))

    def _seconds(self, stage, done):
        return self._rest[stage] if done == STEPS[stage] else self._steps[stage](self._clock())


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


STEPS = {T2I: 20, I2V: 12}


def simulated(scenes, before, steps, workers=1):
    clock = Clock()
    tasks = [Task(f"s{number}", stage, 1.0, STEPS[stage]) for number in range(scenes) for stage in (T2I, I2V)]
    seconds = {T2I: {"denoise": before[0], "decode": 1.0}, I2V: {"denoise": before[1], "decode": 4.0}}
    described = {stage: Description(stage=stage, model="m@1", seconds=told) for stage, told in seconds.items()}
    count = {T2I: 1, I2V: workers}
    estimate = Estimate(tasks, described, count, clock)
    first = estimate.left()
    return first, Run(scenes, estimate, steps, {T2I: 1.0, I2V: 4.0}, count, clock)


def steady(seconds):
    return lambda now: seconds


def slower_while_both_work(seconds):
    """On one processor: the pictures are made in the first half of a minute."""
    return lambda now: seconds * (1.25 if now < 30 else 1.0)


@pytest.mark.parametrize("scenes", [3, 12])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pace", [steady, slower_while_both_work])
@pytest.mark.parametrize("before", [(0.1, 1.0), (0.13, 0.8), (0.07, 1.2)])
def test_what_is_left_is_right_from_a_tenth_on(scenes, workers, pace, before):
    first, run = simulated(scenes, before, {T2I: pace(0.1), I2V: pace(1.0)}, workers)
    whole = run.told[-1][0]
    assert first == pytest.approx(whole, rel=0.6), "from the first second"
    told = [(at, left) for at, left in run.told if at >= whole / 10]
    for at, left in told:
        assert left == pytest.approx(whole - at, rel=0.3, abs=0.06 * whole), at
    for (_, earlier), (_, later) in pairwise(told):
        assert later <= earlier * 1.1 + 1e-6
    assert run.told[-1][1] == 0.0


@pytest.mark.parametrize("path", sorted((ROOT / "tests/data/estimates").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_runs_had_the_right_time_left(path):
    """Runs of the demo models on a busy machine of two cores: what the estimate was told, and when."""
    run, clock = json.loads(path.read_text()), Clock()
    described = {
        Stage(name): Description(stage=name, model="m@1", seconds=seconds) for name, seconds in run["seconds"].items()
    }
    files = {(task["scene"], task["stage"]): task | {"stage": Stage(task["stage"])} for task in run["tasks"]}
    estimate = Estimate([Task(**task) for task in files.values()], described, run["workers"], clock)
    first, told = estimate.left(), []
    for clock.now, what, scene, *more in run["calls"]:
        arguments = [scene, *(Stage(more[0]), *more[1:])] if more else [scene]
        getattr(estimate, what)(*([Task(**files[tuple(arguments)])] if what == "begin" else arguments))
        told.append((clock.now, estimate.left()))
    whole = clock.now
    if all(run["seconds"].values()):
        assert first == pytest.approx(whole, rel=0.5), "from the first second"
    told = [(at, left) for at, left in told if at >= whole / 10 and left is not None]
    assert len(told) > 40
    for at, left in told:
        assert left == pytest.approx(whole - at, rel=0.3, abs=0.06 * whole), at
    for (_, earlier), (_, later) in pairwise(told):
        assert later <= earlier * 1.1 + 1e-6


# --- limits


LIMITED = ANIMATOR.model_copy(update={"limits": {"max_frames": 8, "max_megapixel_steps": 10}})


def test_a_plan_names_what_the_server_would_refuse(tmp_path):
    scene = {**SCENE, "i2v_params": {"num_frames": 10, "num_inference_steps": 20}}
    made = plan(tmp_path, scene, t2i=PAINTER, i2v=LIMITED)
    assert made.refused == [
        "a: i2v_params.num_inference_steps: width × height × frames × steps, in millions, must be at most 10 on this "
        "server, and is 49.152; i2v_params.num_frames: num_frames must be at most 8 on this server, and is 10"
    ]
    assert plan(tmp_path, SCENE, t2i=PAINTER, i2v=ANIMATOR).refused == []


def test_no_picture_is_made_for_a_clip_over_the_limits(tmp_path):
    with fake_torchserve() as server:
        stage = server.pool[I2V][0].handler._loaded
        described = stage.describe().model_copy(update={"limits": {"max_frames": 1}, "num_frames": 2})
        stage.describe = lambda: described
        *_, failed, last = render(parse_scenes(scenes(1)), client_of(server), tmp_path)
    assert failed.message == (
        "i2v would answer 422 InvalidParameters: i2v_params.num_frames: num_frames must be at most 1 on this server, "
        "and is 2"
    )
    assert (last.failed, last.requests) == (1, 0)


def test_a_refused_scene_ends_a_batch_that_fails_fast(tmp_path):
    with fake_torchserve() as server:
        stage = server.pool[I2V][0].handler._loaded
        described = stage.describe().model_copy(update={"limits": {"max_frames": 1}, "num_frames": 2})
        stage.describe = lambda: described
        options = RenderOptions(fail_fast=True)
        *_, last = render(parse_scenes(scenes(3)), client_of(server), tmp_path, options)
    assert (last.failed, last.requests, last.stopped) == (1, 0, "failed")
