"""Jobs that arrive together: which run as one batch, and what becomes of one that does not fit in memory."""

import random

import pytest
import torch

from cloudvid_schema.protocol import ImageToVideoRequest, RequestError
from cloudvid_serving.jobs import Job, WorkerUnfit
from support.stages import clip, decoded, picture, prompt, run


class Watched:
    """A pipeline that hands the prompts of each call on before it carries it out."""

    def __init__(self, pipeline, on_call):
        self._pipeline, self._on_call = pipeline, on_call

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __call__(self, **options):
        self._on_call(options["prompt"])
        return self._pipeline(**options)


def test_jobs_of_one_kind_run_together_with_own_seeds(load):
    loaded = load("t2i", max_prompt=10)
    sizes = []
    loaded._pipeline = Watched(loaded._pipeline, lambda prompts: sizes.append(len(prompts)))
    requests = [prompt(seed=1), prompt(seed=2), prompt(seed=3, width=64), prompt(prompt="far too long"), prompt(seed=1)]
    outcomes = loaded.run([Job(request) for request in requests])
    assert sizes == [3, 1]
    assert "prompt: its length in characters must be at most 10" in str(outcomes[3])
    together = [decoded(outcomes[index].data) for index in (0, 1, 2, 4)]
    single = [decoded(run(loaded, requests[index]).data) for index in (0, 1, 2, 4)]
    for one, other in zip(together, single, strict=True):
        assert one.shape == other.shape
        assert abs(one - other).max() <= 1, "together or by themselves they differ in the last bits"
    assert abs(together[0] - together[3]).max() <= 1, "nor does a place in the batch change more"
    assert abs(together[0] - together[1]).max() > 1
    assert outcomes[0].recipe["batch_size"] == 3
    assert "batch_size" not in outcomes[2].recipe
    assert outcomes[0].together == 3
    sliced, whole = (
        loaded.run([Job(prompt(seed=seed)) for seed in (1, 2)])
        for loaded in (load("t2i"), load("t2i", vae_slicing=False))
    )
    for one, other in zip(sliced, whole, strict=True):
        assert abs(decoded(one.data) - decoded(other.data)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"guidance_scale": 1.0}, [1, 1]),
        ({"guidance_scale": 12.0}, [1, 1]),
        ({"num_inference_steps": 3}, [1, 1]),
        ({"width": 64}, [1, 1]),
        ({"height": 128}, [1, 1]),
        ({"negative_prompt": "wood, glass, a chair"}, [2]),
        ({"prompt": "a boat on a lake"}, [2]),
        ({"seed": 2}, [2]),
        ({"metadata": {"shot": 1}}, [2]),
        ({"embed_recipe": False}, [2]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_two_requests_that_differ_in_one_thing_stay_themselves(load, changes, calls):
    loaded, sizes = load("t2i"), []
    loaded._pipeline = Watched(loaded._pipeline, lambda prompts: sizes.append(len(prompts)))
    requests = [prompt(negative_prompt="a cat"), prompt(**{"negative_prompt": "a cat", **changes})]
    together = loaded.run([Job(request) for request in requests])
    assert sizes == calls
    separate = [run(loaded, request) for request in requests]
    for one, other, request in zip(together, separate, requests, strict=True):
        assert abs(decoded(one.data) - decoded(other.data)).max() <= 1
        assert one.recipe["parameters"] == other.recipe["parameters"]
        assert one.recipe["parameters"]["negative_prompt"] == request.negative_prompt
        assert one.recipe.get("metadata") == request.metadata
        assert (b"cloudvid" in one.data) == request.embed_recipe
        assert (one.steps, one.frames, one.together) == (request.num_inference_steps, 1, calls[0])
    if not {"metadata", "embed_recipe"} & changes.keys():
        first, second = (decoded(output.data) for output in separate)
        assert first.shape != second.shape or abs(first - second).max() > 1, "the change shows at all"


def test_an_error_fails_only_the_request_it_belongs_to(load):
    loaded, sizes = load("t2i"), []

    def with_a_defect(prompts):
        sizes.append(len(prompts))
        if "cursed" in prompts:
            raise ValueError("a defect")

    loaded._pipeline = Watched(loaded._pipeline, with_a_defect)
    outcomes = loaded.run([Job(prompt(prompt=text)) for text in ("a", "b", "cursed", "d", "e")])
    assert sizes == [5, 2, 3, 1, 2]
    assert isinstance(outcomes[2], ValueError)
    for index in (0, 1, 3, 4):
        assert outcomes[index].data
        assert outcomes[index].memory_retries == 0, "it had nothing to do with memory"


def test_each_request_hears_of_its_own_start_and_steps(load):
    loaded = load("t2i")
    heard = {seed: [] for seed in (5, 6)}
    jobs = [
        Job(
            prompt(seed=seed, num_inference_steps=3),
            on_start=lambda *event, told=told: told.append(event),
            on_step=lambda *event, told=told: told.append(event),
        )
        for seed, told in heard.items()
    ]
    loaded.run(jobs)
    steps = loaded._pipeline.num_timesteps
    for seed, told in heard.items():
        assert told[0] == (seed, loaded.identity)
        assert told[1:] == [("denoise", step, steps) for step in range(1, steps + 1)] + [
            ("decode", 1, 1),
            ("encode", 1, 1),
        ]


def test_a_seed_that_was_drawn_is_told_and_recorded(load):
    loaded, drawn = load("t2i"), []
    jobs = [
        Job(prompt(seed=None, num_inference_steps=1), on_start=lambda seed, model: drawn.append(seed)) for _ in range(4)
    ]
    outcomes = loaded.run(jobs)
    assert len(set(drawn)) == 4
    assert [outcome.seed for outcome in outcomes] == drawn
    assert [outcome.recipe["parameters"]["seed"] for outcome in outcomes] == drawn
    assert max(drawn) > 2**24, "all 32 bits are drawn"
    again = loaded.run([Job(prompt(seed=seed, num_inference_steps=1)) for seed in drawn])
    assert [outcome.data for outcome in again] == [outcome.data for outcome in outcomes]


def test_seeds_are_drawn_anew_whatever_the_process_seeded(load):
    """Workers that start alike must not draw alike, and a generator that someone seeded stays as it was."""
    loaded, drawn = load("t2i"), set()
    for _ in range(3):
        random.seed(1)
        before = random.getstate()
        drawn.add(run(loaded, prompt(seed=None, num_inference_steps=1)).seed)
        assert random.getstate() == before
    assert len(drawn) == 3


def test_seed_zero_is_a_seed_like_any_other(load):
    assert run(load("t2i"), prompt(seed=0, num_inference_steps=1)).seed == 0
    assert run(load("i2v"), clip(seed=0, num_frames=2), picture()).seed == 0


def test_a_process_that_is_unfit_serves_nobody_else(load):
    loaded, sizes = load("t2i"), []

    def fault(prompts):
        sizes.append(len(prompts))
        raise WorkerUnfit("the device has failed")

    loaded._pipeline = Watched(loaded._pipeline, fault)
    with pytest.raises(WorkerUnfit):
        loaded.run([Job(prompt(seed=seed)) for seed in (1, 2)])
    assert sizes == [2]


def test_outcomes_stand_in_the_order_of_their_requests(load):
    loaded = load("t2i", max_steps=4)
    requests = [prompt(seed=1), prompt(num_inference_steps=5), prompt(seed=3, width=64), prompt(seed=4)]
    outcomes = loaded.run([Job(request) for request in requests])
    assert [getattr(outcome, "seed", None) for outcome in outcomes] == [1, None, 3, 4]
    assert isinstance(outcomes[1], RequestError)


def test_a_batch_without_enough_memory_runs_in_halves(load):
    loaded = load("t2i")
    sizes = []

    def small_memory(prompts):
        sizes.append(len(prompts))
        if len(prompts) > 2 or "huge" in prompts:
            raise torch.OutOfMemoryError("CUDA out of memory")

    loaded._pipeline = Watched(loaded._pipeline, small_memory)
    outcomes = loaded.run([Job(prompt(prompt=text)) for text in ("a", "b", "huge", "d")])
    assert sizes == [4, 2, 2, 1, 1]
    assert outcomes[2].body.code == 507
    assert all(outcomes[index].data for index in (0, 1, 3))
    assert sum(outcomes[index].memory_retries for index in (0, 1, 3)) == 2, "the whole, and the half with the huge one"


def test_clips_run_one_after_the_other_whatever_arrives_together(load):
    loaded = load("i2v")
    jobs = [Job(clip(seed=seed), picture()) for seed in (1, 2)]
    outcomes = loaded.run([*jobs, Job(ImageToVideoRequest(), b"no picture")])
    assert [outcome.data for outcome in outcomes[:2]] == [run(loaded, job.request, picture()).data for job in jobs]
    assert outcomes[2].body.code == 422
