"""What a stage measures of itself: milliseconds of each phase, and its pace."""

import time

import pytest

from cloudvid_serving.jobs import Job
from support.stages import clip, picture, prompt, run

PICTURE = picture((128, 64))


def request_of(stage, **values):
    return (prompt(**values), None) if stage == "t2i" else (clip(**values), PICTURE)


@pytest.mark.parametrize("stage", ["t2i", "i2v"])
def test_timings_are_milliseconds_of_each_phase(load, stage):
    loaded = load(stage)
    began = time.perf_counter()
    output = run(loaded, *request_of(stage, num_inference_steps=3))
    milliseconds = (time.perf_counter() - began) * 1000
    assert list(output.timings) == ["denoise", "decode", "encode"]
    assert all(value > 0 for value in output.timings.values())
    # In another unit they would be a thousand times off.
    assert milliseconds / 20 < sum(output.timings.values()) <= milliseconds


@pytest.mark.parametrize(
    ("stage", "values", "pixels"),
    [
        ("t2i", {"num_inference_steps": 4}, 128 * 64),
        ("t2i", {"num_inference_steps": 2, "width": 64, "height": 192}, 64 * 192),
        ("i2v", {"num_inference_steps": 2, "num_frames": 5}, 128 * 64 * 5),
        ("i2v", {"num_inference_steps": 1, "num_frames": 3, "width": 64, "height": 192}, 64 * 192 * 3),
    ],
)
def test_the_pace_is_seconds_per_step_and_million_pixels(load, stage, values, pixels):
    loaded = load(stage)
    assert loaded.describe().seconds == {}
    output = run(loaded, *request_of(stage, **values))
    assert loaded.describe().seconds == {
        "denoise": pytest.approx(output.timings["denoise"] / 1000 / values["num_inference_steps"] / (pixels / 1e6)),
        "decode": pytest.approx(output.timings["decode"] / 1000 / (pixels / 1e6)),
    }


def test_a_groups_pace_counts_the_pixels_of_all(load):
    loaded = load("t2i")
    first, second = loaded.run([Job(prompt(seed=seed, num_inference_steps=2)) for seed in (1, 2)])
    assert first.timings == second.timings, "they took it together"
    pace = first.timings["denoise"] / 1000 / 2 / (2 * 128 * 64 / 1e6)
    assert loaded.describe().seconds["denoise"] == pytest.approx(pace)


@pytest.mark.parametrize(("stage", "size"), [("t2i", "64x64"), ("i2v", "64x64x2")])
def test_a_warm_up_is_no_measure_of_the_pace(load, stage, size):
    loaded = load(stage, warm_up=[size])
    assert loaded.describe().seconds == {}
    run(loaded, *request_of(stage, num_inference_steps=1))
    assert loaded.describe().seconds.keys() == {"denoise", "decode"}


def test_an_output_counts_its_steps_and_frames(load):
    picture = run(load("t2i"), prompt(num_inference_steps=3))
    assert (picture.steps, picture.frames, picture.together, picture.memory_retries) == (3, 1, 1, 0)
    made = run(load("i2v"), clip(num_inference_steps=2, num_frames=3), PICTURE)
    assert (made.steps, made.frames, made.together, made.memory_retries) == (2, 3, 1, 0)


def test_steps_are_told_one_by_one_with_their_phase(load):
    values = {"num_inference_steps": 3, "num_frames": 5, "decode_chunk_size": 2}
    loaded, told = load("i2v"), []
    run(loaded, *request_of("i2v", **values))
    run(loaded, *request_of("i2v", **values), on_step=lambda *step: told.append(step))
    assert told == [
        *(("denoise", step, 3) for step in (1, 2, 3)),
        *(("decode", chunk, 3) for chunk in (1, 2, 3)),
        ("encode", 1, 1),
    ]


def test_a_stage_says_what_memory_it_held_at_most(load):
    loaded = load("t2i")
    assert loaded.gauges() == {"peak_memory_bytes": pytest.approx(loaded.describe().peak_memory, rel=0.1)}
    assert loaded.describe().peak_memory > 50 * 2**20
