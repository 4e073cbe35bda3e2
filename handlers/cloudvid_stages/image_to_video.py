"""Image to video: `StableVideoDiffusionPipeline` from a picture file to an MP4 file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import MP4, ImageToVideoRequest, RequestError, Stage
from cloudvid_schema.sizes import clip_size
from cloudvid_serving.bodies import too_large
from cloudvid_serving.jobs import Job, Output
from cloudvid_stages import media
from cloudvid_stages.memory import frames_that_fit, free_memory
from cloudvid_stages.pictures import fit_picture, open_picture
from cloudvid_stages.recipe import RecipeTooLong, digest_of, recipe_of_png
from cloudvid_stages.settings import ImageToVideoSettings, SettingsError
from cloudvid_stages.stage import PipelineStage, Stopwatch, average, generator

logger = logging.getLogger(__name__)
_USUAL_SIZE = (1024, 576)  # what SVD was trained for


@dataclass(frozen=True)
class _Accepted(Job):
    """A job whose request says the clip's size and length."""

    image: Image.Image = field(kw_only=True)
    """The picture, decoded."""


class ImageToVideo(PipelineStage[ImageToVideoSettings, _Accepted]):
    """A loaded image-to-video model. Requests run one after the other: the pipeline would decode frames of two clips
    in one chunk, and its decoder mixes the frames of a chunk.
    """

    stage: ClassVar[Stage] = Stage.I2V
    smallest: ClassVar[str] = "64x64x2"

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> Self:
        """Load the model, once it is certain that its clips can be encoded.

        Raises:
            SettingsError: as for any stage; or ffmpeg cannot encode.
        """
        try:
            media.mp4_bytes(np.zeros((2, 64, 64, 3), np.uint8), 7, None)
        except (RuntimeError, OSError) as error:
            if "No space left" not in str(error):  # that is not ffmpeg's fault, and may be over by the first clip
                rule = "ffmpeg cannot encode clips; IMAGEIO_FFMPEG_EXE may name one that has libx264"
                raise SettingsError(f"{rule}: {error}") from None
        return super().load(section, gpu_id)

    def _accept(self, job: Job) -> _Accepted:
        request, picture, settings = job.request, job.picture or b"", self._settings
        if len(picture) > settings.max_image_bytes:
            raise too_large(len(picture), settings.max_image_bytes)
        chunk = request.decode_chunk_size
        if chunk is not None and chunk > (settings.max_decode_chunk_size or chunk):
            rule = f"must be at most {settings.max_decode_chunk_size} on this server"
            raise RequestError.invalid([Fault("decode_chunk_size", rule, chunk)])
        num_frames = request.num_frames or self._pipeline.unet.config.num_frames
        check = partial(settings.check_limits, frames=num_frames, steps=request.num_inference_steps)

        def check_size(size: tuple[int, int]) -> None:
            """Limits are held against the header before pixels are decoded; on its side a picture has the same area."""
            (width, height), faults = clip_size(size, request.width, request.height)
            is_sure = (request.width is None) == (request.height is None) and not faults
            check(pixels=width * height if is_sure else 0)

        image = open_picture(picture, settings.max_image_pixels, check_size)
        (width, height), faults = clip_size(image.size, request.width, request.height)
        if faults:
            raise RequestError.invalid(faults)
        check(pixels=width * height)
        resolved = request.model_copy(update={"width": width, "height": height, "num_frames": num_frames})
        return _Accepted(**vars(replace(job, request=resolved)), image=image)

    def _carry_out(self, group: Sequence[_Accepted]) -> list[Output]:
        (accepted,) = group
        request, picture, image = accepted.request, accepted.picture or b"", accepted.image
        with self._call(group) as watch:
            latents = self._pipeline(
                fit_picture(image, request.width, request.height, request.fit),
                width=request.width,
                height=request.height,
                num_frames=request.num_frames,
                num_inference_steps=request.num_inference_steps,
                min_guidance_scale=request.min_guidance_scale,
                max_guidance_scale=request.max_guidance_scale,
                fps=request.fps,
                motion_bucket_id=request.motion_bucket_id,
                noise_aug_strength=request.noise_aug_strength,
                generator=generator(request.seed),
                output_type="latent",
                callback_on_step_end=watch.after_step,
            ).frames
            self._forget_features()  # they would take the room that decoding needs
            pixels, chunk, retries = self._decoded(latents, request, watch)
        recipe = self._recipe(request, decode_chunk_size=chunk)
        recipe["picture"] = {"sha256": digest_of(picture), "width": image.width, "height": image.height}
        warnings: tuple[str, ...] = ()
        try:
            if (of_picture := recipe_of_png(picture)) is not None:
                recipe["picture"]["recipe"] = of_picture
        except RecipeTooLong as error:
            warnings = (f"image: {error}",)
        recipe["frames_sha256"] = digest_of(pixels)
        data = media.mp4_bytes(pixels, request.fps, recipe if request.embed_recipe else None)
        watch.step("encode", 1, 1)
        steps, frames = request.num_inference_steps, request.num_frames
        average(self._seconds, watch.timings, request.width * request.height * frames, steps)
        output = Output(data, MP4, request.seed, watch.timings, recipe, steps, frames)
        return [replace(output, warnings=warnings, memory_retries=retries)]

    def _decoded(self, latents: torch.Tensor, request: Any, watch: Stopwatch) -> tuple[np.ndarray, int, int]:
        """Frames (N×H×W×3 uint8, RGB), how many were decoded at once, and how often memory ran out before.

        The caller's own chunk is part of what was asked for, since another gives other pixels; the operator's default
        gives way to the memory that is free.
        """
        fixed: int | None = request.decode_chunk_size
        chunk = fixed or self._settings.decode_chunk_size
        if fixed is None:
            room = frames_that_fit(self._pipeline.vae, request.width, request.height, self._loaded.device)
            if room < min(chunk, request.num_frames):
                logger.warning("free memory has room for %d frames at once, not %d", room, chunk)
                chunk = room
        retries = 0
        while True:
            try:
                return self._decode(latents, request.num_frames, chunk, watch), chunk, retries
            except torch.OutOfMemoryError as error:
                if fixed is not None or chunk == 1:
                    raise
                free_memory(after=error)
                chunk, retries = (min(chunk, request.num_frames) + 1) // 2, retries + 1
                logger.warning("out of memory while decoding: once more with %d frames at once", chunk)

    def _decode(self, latents: torch.Tensor, num_frames: int, chunk: int, watch: Stopwatch) -> np.ndarray:
        """Frames of a clip: N×H×W×3 uint8, RGB, decoded so many at once as the pipeline itself would.

        Apart from the denoising, so that a decoding that does not fit is all that is done again.
        """
        chunks, numbers = -(-num_frames // chunk), count(1)
        hook = self._pipeline.vae.decoder.register_forward_hook(lambda *_: watch.step("decode", next(numbers), chunks))
        try:
            frames = self._pipeline.decode_latents(latents, num_frames, chunk)
        finally:
            hook.remove()
        video = self._pipeline.video_processor.postprocess_video(video=frames, output_type="np")[0]
        pixels: np.ndarray = (video * 255).round().astype(np.uint8)
        return pixels

    def _warm_up_job(self, size: Sequence[int], steps: int) -> Job:
        if len(size) not in (0, 2, 3):
            raise ValueError("must be WIDTHxHEIGHTxFRAMES, or without the frames")
        width, height = size[:2] or _USUAL_SIZE
        frames = size[2] if len(size) == 3 else None
        request = ImageToVideoRequest(width=width, height=height, num_frames=frames, num_inference_steps=steps, seed=0)
        return Job(request, media.png_bytes(Image.new("RGB", (width, height)), None))
