"""Image to video: `StableVideoDiffusionPipeline` from a picture file to an MP4 file."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline

from cloudvid_schema.bodies import too_large
from cloudvid_schema.protocol import MP4, Description, ImageToVideoRequest, RequestError, Stage
from cloudvid_schema.sizes import clip_size
from cloudvid_stages import media
from cloudvid_stages.limits import check_limits
from cloudvid_stages.pictures import fit_picture, open_picture
from cloudvid_stages.recipe import NOT_PARAMETERS, digest_of, make_recipe, recipe_of_png
from cloudvid_stages.settings import ImageToVideoSettings, read_settings
from cloudvid_stages.stage import (
    Meter,
    OnStart,
    OnStep,
    Output,
    Stopwatch,
    device_faults,
    device_name,
    draw_seed,
    free_memory,
    generator,
    load_pipeline,
)

logger = logging.getLogger(__name__)


class ImageToVideo:
    """A loaded image-to-video model."""

    stage: ClassVar[Stage] = Stage.I2V

    def __init__(
        self, pipeline: StableVideoDiffusionPipeline, identity: str, precision: str, settings: ImageToVideoSettings
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self.identity = identity
        self._precision = precision
        self._meter = Meter()

    def describe(self) -> Description:
        """What this worker says of itself."""
        num_frames = self._pipeline.unet.config.num_frames
        return Description(stage=self.stage, model=self.identity, seconds=self._meter.seconds, num_frames=num_frames)

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> Self:
        """Load the model that the settings name.

        Args:
            section: the `handler:` section of the archive's YAML.
            gpu_id: the GPU that the server dealt this worker, if any.

        Raises:
            SettingsError: a setting is wrong or the model cannot be used.
        """
        settings = read_settings(ImageToVideoSettings, cls.stage, section)
        pipeline, checkpoint, precision = load_pipeline(
            StableVideoDiffusionPipeline, cls.stage, settings, device_name(gpu_id)
        )
        return cls(pipeline, checkpoint.identity, precision, settings)

    @device_faults()
    @torch.inference_mode()
    def run(self, request: ImageToVideoRequest, picture: bytes, on_start: OnStart, on_step: OnStep) -> Output:
        """Make one clip.

        Args:
            request: a validated request.
            picture: a PNG, JPEG or WebP file.
            on_start: told the seed and the model before the first step.
            on_step: told of every step.

        Raises:
            RequestError: 422, the picture cannot be read or its size cannot be animated.
        """
        if len(picture) > self._settings.max_image_bytes:
            raise too_large(len(picture), self._settings.max_image_bytes)
        image = open_picture(picture, self._settings.max_image_pixels)
        (width, height), faults = clip_size(image.size, request.width, request.height)
        if faults:
            raise RequestError.invalid(faults)
        num_frames = request.num_frames or self._pipeline.unet.config.num_frames
        check_limits(self._settings, pixels=width * height, frames=num_frames, steps=request.num_inference_steps)
        chunk = request.decode_chunk_size or self._settings.decode_chunk_size
        seed = draw_seed() if request.seed is None else request.seed
        on_start(seed, self.identity)
        watch = Stopwatch(on_step)

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch.step("denoise", step + 1, pipeline.num_timesteps)
            return tensors

        latents = self._pipeline(
            fit_picture(image, width, height, request.fit),
            width=width,
            height=height,
            num_frames=num_frames,
            num_inference_steps=request.num_inference_steps,
            min_guidance_scale=request.min_guidance_scale,
            max_guidance_scale=request.max_guidance_scale,
            fps=request.fps,
            motion_bucket_id=request.motion_bucket_id,
            noise_aug_strength=request.noise_aug_strength,
            generator=generator(seed),
            output_type="latent",
            callback_on_step_end=after_step,
        ).frames
        while True:
            try:
                pixels = self._decode(latents, num_frames, chunk, watch)
                break
            except torch.OutOfMemoryError:
                # The caller's own chunk is part of what was asked for: another would give other pixels.
                if request.decode_chunk_size is not None or chunk == 1:
                    raise
                free_memory()
                chunk = (chunk + 1) // 2
                logger.warning("out of memory while decoding: once more with %d frames at once", chunk)
        parameters = request.model_dump(exclude=NOT_PARAMETERS) | {
            "width": width,
            "height": height,
            "num_frames": num_frames,
            "decode_chunk_size": chunk,
            "seed": seed,
        }
        recipe = make_recipe(self.stage, parameters, self.identity, self._precision, request.metadata)
        recipe["picture"] = {"sha256": digest_of(picture), "width": image.width, "height": image.height}
        if (of_picture := recipe_of_png(picture)) is not None:
            recipe["picture"]["recipe"] = of_picture
        recipe["frames_sha256"] = digest_of(pixels)
        data = media.mp4_bytes(pixels, request.fps, recipe if request.embed_recipe else None)
        watch.step("encode", 1, 1)
        self._meter.count(watch.timings, width * height * num_frames, request.num_inference_steps)
        return Output(data, MP4, seed, watch.timings, recipe)

    def _decode(self, latents: torch.Tensor, num_frames: int, chunk: int, watch: Stopwatch) -> np.ndarray:
        """Frames of a clip: N×H×W×3 uint8, RGB, decoded so many at once as the pipeline itself would.

        Apart from the denoising, so that a decoding that does not fit is all that is done again.
        """
        chunks, decoded = -(-num_frames // chunk), 0

        def after_chunk(*_: object) -> None:
            nonlocal decoded
            decoded += 1
            watch.step("decode", decoded, chunks)

        hook = self._pipeline.vae.decoder.register_forward_hook(after_chunk)
        try:
            frames = self._pipeline.decode_latents(latents, num_frames, chunk)
        finally:
            hook.remove()
        video = self._pipeline.video_processor.postprocess_video(video=frames, output_type="np")[0]
        pixels: np.ndarray = (video * 255).round().astype(np.uint8)
        return pixels
