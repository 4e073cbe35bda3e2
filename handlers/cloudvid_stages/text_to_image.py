"""Text to image: `StableDiffusionPipeline` from a prompt to a PNG file."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cloudvid_schema.jobs import Job, Output
from cloudvid_schema.protocol import PNG, RequestError, Stage, TextToImageRequest
from cloudvid_stages import media
from cloudvid_stages.limits import check_limits
from cloudvid_stages.recipe import NOT_PARAMETERS, make_recipe
from cloudvid_stages.settings import TextToImageSettings
from cloudvid_stages.stage import PipelineStage, Stopwatch, draw_seed, generator


@dataclass(frozen=True)
class _Accepted:
    job: Job
    seed: int

    @property
    def request(self) -> TextToImageRequest:
        request: TextToImageRequest = self.job.request
        return request


class TextToImage(PipelineStage[TextToImageSettings]):
    """A loaded text-to-image model. Requests of the same size, steps and guidance run together, each with a generator
    of its own; together or alone differ in the last bits, so a batch of one is the repeatable mode.
    """

    stage: ClassVar[Stage] = Stage.T2I
    batches: ClassVar[bool] = True
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    settings_class = TextToImageSettings

    def _accept(self, job: Job) -> _Accepted:
        request = job.request
        check_limits(
            self._settings,
            pixels=request.width * request.height,
            steps=request.num_inference_steps,
            prompt=request.prompt,
        )
        return _Accepted(job, draw_seed() if request.seed is None else request.seed)

    def _kind(self, accepted: _Accepted) -> Hashable:
        request = accepted.request
        return request.width, request.height, request.num_inference_steps, request.guidance_scale

    def _carry_out(self, group: Sequence[_Accepted]) -> list[Output]:
        first = group[0].request
        watch = Stopwatch([accepted.job.on_step for accepted in group])
        with self._request():
            made = self._pipeline(
                prompt=[accepted.request.prompt for accepted in group],
                negative_prompt=[accepted.request.negative_prompt for accepted in group],
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                width=first.width,
                height=first.height,
                generator=[generator(accepted.seed) for accepted in group],
                callback_on_step_end=watch.after_step,
            )
        watch.step("decode", 1, 1)
        if any(made.nsfw_content_detected or ()):
            # The checkpoint's own safety checker blackens a picture: nobody should find that in the morning.
            raise RequestError(422, "SafetyChecker", "the model's safety checker refuses to show this picture")
        files = []
        for accepted, image in zip(group, made.images, strict=True):
            request = accepted.request
            parameters = request.model_dump(exclude=NOT_PARAMETERS) | {"seed": accepted.seed}
            recipe = make_recipe(self.stage, parameters, self._made_with(len(group)), request.metadata)
            files.append((accepted, media.png_bytes(image, recipe if request.embed_recipe else None), recipe))
        watch.step("encode", 1, 1)
        pixels = first.width * first.height * len(group)
        self._meter.count(watch.timings, pixels, first.num_inference_steps)
        return [
            Output(data, PNG, accepted.seed, watch.timings, recipe, first.num_inference_steps, together=len(group))
            for accepted, data, recipe in files
        ]

    def _warm_up_job(self, size: Sequence[int], steps: int) -> Job:
        if len(size) not in (0, 2):
            raise ValueError("must be WIDTHxHEIGHT")
        asked: dict[str, Any] = dict(zip(("width", "height"), size, strict=False))
        return Job(TextToImageRequest(prompt="warm-up", num_inference_steps=steps, seed=0, **asked))
