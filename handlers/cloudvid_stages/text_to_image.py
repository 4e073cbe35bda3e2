"""Text to image: `StableDiffusionPipeline` from a prompt to a PNG file."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar

from cloudvid_schema.protocol import PNG, RequestError, Stage, TextToImageRequest
from cloudvid_schema.vocabulary import vocabulary_warnings
from cloudvid_serving.jobs import Job, Output
from cloudvid_stages import media
from cloudvid_stages.settings import TextToImageSettings
from cloudvid_stages.stage import PipelineStage, average, generator

_START = 40  # characters that a warning shows of what a model ignores: all warnings share a header


class TextToImage(PipelineStage[TextToImageSettings, Job]):
    """A loaded text-to-image model. Requests of the same size, steps and guidance run together, each with a generator
    of its own; a batch differs in the last bits from single requests, so a batch of one is the repeatable mode.
    """

    stage: ClassVar[Stage] = Stage.T2I
    batches: ClassVar[bool] = True
    smallest: ClassVar[str] = "64x64"

    def _accept(self, job: Job) -> Job:
        request, pixels = job.request, job.request.width * job.request.height
        self._settings.check_limits(pixels=pixels, steps=request.num_inference_steps, prompt=request.prompt)
        return job

    def _kind(self, accepted: Job) -> Hashable:
        request = accepted.request
        return request.width, request.height, request.num_inference_steps, request.guidance_scale

    def _carry_out(self, group: Sequence[Job]) -> list[Output | Exception]:
        first = group[0].request
        with self._call(group) as watch:
            made = self._pipeline(
                prompt=[job.request.prompt for job in group],
                negative_prompt=[job.request.negative_prompt for job in group],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                width=first.width,
                height=first.height,
                generator=[generator(job.request.seed) for job in group],
                callback_on_step_end=watch.after_step,
            )
        watch.step("decode", 1, 1)
        outcomes: list[Output | Exception] = []
        flagged = made.nsfw_content_detected or [False] * len(group)
        for job, image, is_flagged in zip(group, made.images, flagged, strict=True):
            if is_flagged:
                # The checkpoint's own safety checker blackens it: that is an error, not a result.
                refusal = "the model's safety checker refuses to show this picture"
                outcomes.append(RequestError(422, "SafetyChecker", refusal))
                continue
            request, steps = job.request, first.num_inference_steps
            recipe = self._recipe(request, len(group))
            data = media.png_bytes(image, recipe if request.embed_recipe else None)
            warnings = tuple(self._warnings(request))
            done = Output(data, PNG, request.seed, watch.timings, recipe, steps, together=len(group), warnings=warnings)
            outcomes.append(done)
        watch.step("encode", 1, 1)
        average(self._seconds, watch.timings, first.width * first.height * len(group), first.num_inference_steps)
        return outcomes

    def _warnings(self, request: TextToImageRequest) -> Iterator[str]:
        """What the model ignores in a request."""
        if self._loaded.vocabulary is not None:
            yield from vocabulary_warnings(request, self._loaded.vocabulary)
        tokenizer = self._pipeline.tokenizer
        most = tokenizer.model_max_length
        for name in ("prompt", "negative_prompt"):
            tokens = tokenizer(getattr(request, name)).input_ids
            if len(tokens) > most:
                rest = tokenizer.decode(tokens[most - 1 : -1])  # in the last place stands the end
                start = rest if len(rest) <= _START else f"{rest[:_START]}…"
                yield f"{name}: the model reads {most - 2} tokens and ignores the last {len(tokens) - most}: {start}"

    def _warm_up_job(self, size: Sequence[int], steps: int) -> Job:
        if len(size) not in (0, 2):
            raise ValueError("must be WIDTHxHEIGHT")
        asked: dict[str, Any] = dict(zip(("width", "height"), size, strict=False))
        return Job(TextToImageRequest(prompt="warm-up", num_inference_steps=steps, seed=0, **asked))
