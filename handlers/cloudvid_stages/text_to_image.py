"""Text to image: `StableDiffusionPipeline` from a prompt to a PNG file."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cloudvid_schema.protocol import PNG, Description, RequestError, Stage, TextToImageRequest
from cloudvid_schema.vocabulary import vocabulary_warnings
from cloudvid_serving.jobs import Job, Output
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
    of its own; a batch differs in the last bits from single requests, so a batch of one is the repeatable mode.
    """

    stage: ClassVar[Stage] = Stage.T2I
    batches: ClassVar[bool] = True
    smallest: ClassVar[str] = "64x64"

    def describe(self) -> Description:
        """What this worker says of itself."""
        known = self._loaded.vocabulary
        return super().describe().model_copy(update={"vocabulary": None if known is None else sorted(known)})

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

    def _carry_out(self, group: Sequence[_Accepted]) -> list[Output | Exception]:
        first = group[0].request
        watch = Stopwatch(self._loaded.device, [accepted.job.on_step for accepted in group])
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
        outcomes: list[Output | Exception] = []
        flagged = made.nsfw_content_detected or [False] * len(group)
        for accepted, image, is_flagged in zip(group, made.images, flagged, strict=True):
            if is_flagged:
                # The checkpoint's own safety checker blackens it: that is an error, not a result.
                refusal = "the model's safety checker refuses to show this picture"
                outcomes.append(RequestError(422, "SafetyChecker", refusal))
                continue
            request = accepted.request
            parameters = request.model_dump(exclude=NOT_PARAMETERS) | {"seed": accepted.seed}
            recipe = make_recipe(self.stage, parameters, self._made_with(len(group)), request.metadata)
            data = media.png_bytes(image, recipe if request.embed_recipe else None)
            steps = first.num_inference_steps
            outcomes.append(
                Output(
                    data,
                    PNG,
                    accepted.seed,
                    watch.timings,
                    recipe,
                    steps,
                    together=len(group),
                    warnings=self._warnings(request),
                )
            )
        watch.step("encode", 1, 1)
        self._meter.count(watch.timings, first.width * first.height * len(group), first.num_inference_steps)
        return outcomes

    def _warnings(self, request: TextToImageRequest) -> tuple[str, ...]:
        known = self._loaded.vocabulary
        return () if known is None else tuple(vocabulary_warnings(request, known))

    def _warm_up_job(self, size: Sequence[int], steps: int) -> Job:
        if len(size) not in (0, 2):
            raise ValueError("must be WIDTHxHEIGHT")
        asked: dict[str, Any] = dict(zip(("width", "height"), size, strict=False))
        return Job(TextToImageRequest(prompt="warm-up", num_inference_steps=steps, seed=0, **asked))
