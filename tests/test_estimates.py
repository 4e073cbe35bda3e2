"""What a plan says of time, steps and sizes, worked out here by hand."""

import json
from pathlib import Path

import pytest

from cloudvid import Stage, parse_scenes, render
from cloudvid.batch.plan import make_plan
from cloudvid_schema.protocol import Description
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
    assert [stage.seconds for stage in made.stages] == [pytest.approx(DRAWN), pytest.approx(ANIMATED)]
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
    assert made.stages[1].seconds == pytest.approx(pixels * frames * (0.5 * steps + 0.25))


def test_a_run_takes_as_long_as_its_slower_stage(tmp_path):
    made = plan(tmp_path, SCENE, {**SCENE, "id": "b"}, t2i=PAINTER, i2v=ANIMATOR)
    assert 2 * DRAWN < 2 * ANIMATED
    for workers, seconds in (
        ({}, 2 * ANIMATED),
        ({T2I: 1, I2V: 1}, 2 * ANIMATED),
        ({T2I: 1, I2V: 2}, ANIMATED),
        ({T2I: 1, I2V: 10}, 2 * DRAWN),
        ({T2I: 4, I2V: 100}, DRAWN / 2),
        ({T2I: 0, I2V: 0}, 2 * ANIMATED),
    ):
        assert made.seconds(workers) == pytest.approx(seconds), workers


def test_no_estimate_where_a_stage_that_runs_is_unmeasured(tmp_path):
    unmeasured = PAINTER.model_copy(update={"seconds": {"denoise": 2.0}})
    assert plan(tmp_path, SCENE, i2v=ANIMATOR).seconds({}) is None
    assert plan(tmp_path, SCENE, t2i=unmeasured, i2v=ANIMATOR).seconds({}) is None


def test_what_is_skipped_takes_no_time(tmp_path):
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    (tmp_path / "s0_video.mp4").unlink()
    animator = Description(stage=I2V, model="noise-i2v@1", seconds={"denoise": 1.0, "decode": 1.0}, num_frames=2)
    made = plan(tmp_path, *scenes(1), i2v=animator)
    assert [(stage.reason, stage.steps) for stage in made.stages] == [(None, 0), ("file missing", 2)]
    assert made.seconds({}) == pytest.approx(64 * 64 * 2 / 1e6 * 3)


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
    seconds = 2 * FRAME_PIXELS * 10 * (30 * 20 + 60) / 2
    assert seconds > 2 * PICTURE_PIXELS * (30 * 10 + 60)
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
