"""Text to image: `StableDiffusionPipeline` from a prompt to a PNG file."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionPipeline

from cloudvid_schema.protocol import PNG, Description, Stage, TextToImageRequest
from cloudvid_stages import media
from cloudvid_stages.limits import check_limits
from cloudvid_stages.recipe import NOT_PARAMETERS, make_recipe
from cloudvid_stages.settings import TextToImageSettings, read_settings
from cloudvid_stages.stage import (
    Meter,
    OnStart,
    OnStep,
    Output,
    Stopwatch,
    device_faults,
    device_name,
    draw_seed,
    generator,
    load_pipeline,
)


class TextToImage:
    """A loaded text-to-image model."""

    stage: ClassVar[Stage] = Stage.T2I

    def __init__(
        self, pipeline: StableDiffusionPipeline, identity: str, precision: str, settings: TextToImageSettings
    ) -> None:
        self._pipeline = pipeline
        self.identity = identity
        self._precision = precision
        self._settings = settings
        self._meter = Meter()

    def describe(self) -> Description:
        """What this worker says of itself."""
        return Description(stage=self.stage, model=self.identity, seconds=self._meter.seconds)

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> Self:
        """Load the model that the settings name.

        Args:
            section: the `handler:` section of the archive's YAML.
            gpu_id: the GPU that the server dealt this worker, if any.

        Raises:
            SettingsError: a setting is wrong or the model cannot be used.
        """
        settings = read_settings(TextToImageSettings, cls.stage, section)
        pipeline, checkpoint, precision = load_pipeline(
            StableDiffusionPipeline, cls.stage, settings, device_name(gpu_id)
        )
        return cls(pipeline, checkpoint.identity, precision, settings)

    @device_faults()
    @torch.inference_mode()
    def run(self, request: TextToImageRequest, picture: None, on_start: OnStart, on_step: OnStep) -> Output:
        """Make one picture.

        Args:
            request: a validated request.
            picture: not used by this stage.
            on_start: told the seed and the model before the first step.
            on_step: told of every step.
        """
        check_limits(
            self._settings,
            pixels=request.width * request.height,
            steps=request.num_inference_steps,
            prompt=request.prompt,
        )
        seed = draw_seed() if request.seed is None else request.seed
        on_start(seed, self.identity)
        watch = Stopwatch(on_step)

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch.step("denoise", step + 1, pipeline.num_timesteps)
            return tensors

        image = self._pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            generator=generator(seed),
            callback_on_step_end=after_step,
        ).images[0]
        watch.step("decode", 1, 1)
        parameters = request.model_dump(exclude=NOT_PARAMETERS) | {"seed": seed}
        recipe = make_recipe(self.stage, parameters, self.identity, self._precision, request.metadata)
        data = media.png_bytes(image, recipe if request.embed_recipe else None)
        watch.step("encode", 1, 1)
        self._meter.count(watch.timings, image.width * image.height, request.num_inference_steps)
        return Output(data, PNG, seed, watch.timings, recipe)
