"""Jobs that arrive together: which run as one batch, and what becomes of one that does not fit in memory."""

import torch
from stages import clip, decoded, picture, prompt, run

from cloudvid_schema.jobs import Job
from cloudvid_schema.protocol import ImageToVideoRequest


class Watched:
    """A pipeline that hands the prompts of each call on before it carries it out."""

    def __init__(self, pipeline, on_call):
        self._pipeline, self._on_call = pipeline, on_call

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __call__(self, **options):
        self._on_call(options["prompt"])
        return self._pipeline(**options)


def test_jobs_of_one_kind_run_together_and_each_has_its_own_seed_and_error(load):
    loaded = load("t2i", max_prompt=10)
    sizes = []
    loaded._pipeline = Watched(loaded._pipeline, lambda prompts: sizes.append(len(prompts)))
    requests = [prompt(seed=1), prompt(seed=2), prompt(seed=3, width=64), prompt(prompt="far too long"), prompt(seed=1)]
    outcomes = loaded.run([Job(request) for request in requests])
    assert sizes == [3, 1]
    assert "prompt: its length in characters must be at most 10" in str(outcomes[3])
    together = [decoded(outcomes[index].data) for index in (0, 1, 2, 4)]
    alone = [decoded(run(loaded, requests[index]).data) for index in (0, 1, 2, 4)]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        assert abs(one - other).max() <= 1, "together or alone differ in the last bits"
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


def test_a_batch_that_does_not_fit_in_memory_runs_in_halves_and_only_what_fits_nowhere_fails(load):
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
