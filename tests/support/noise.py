"""Stages without pipelines: a picture or clip is noise that follows from its request, at once.

For faults and for many requests. All else of a worker is the real one; it starts in less than half the time, since
neither diffusers nor a model is loaded. A `directory` that is named must be there, as a model's must.
"""

import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cloudvid_schema.parameters import MAX_SEED
from cloudvid_schema.protocol import MP4, PNG, Description, RequestError, Stage
from cloudvid_serving.jobs import Output
from cloudvid_stages import media
from cloudvid_stages.recipe import digest_of, make_recipe, recipe_of_png
from cloudvid_stages.settings import SettingsError

CLIP = (3, 64, 64, 3)


class _Noise:
    stage: ClassVar[Stage]
    batches: ClassVar[bool] = False
    device = "cpu"

    def __init__(self, identity: str, step_seconds: float, stall_seconds: float = 0.0, warnings=()) -> None:
        self.identity, self.warnings = identity, tuple(warnings)
        self.step_seconds, self.stall_seconds = step_seconds, stall_seconds
        self._seconds: dict[str, float] = {}

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> "_Noise":
        directory = section.get("directory")
        if directory and not Path(directory).is_dir():
            raise SettingsError(f"model directory {directory} is not there")
        more = {name: section[name] for name in ("stall_seconds", "warnings") if name in section}
        return cls(section["identity"], section["step_seconds"], **more)

    def describe(self) -> Description:
        return Description(stage=self.stage, model=self.identity, seconds=self._seconds)

    def gauges(self) -> dict[str, float]:
        return {}

    def run(self, jobs) -> list[Output | Exception]:
        return [self._make(job.request, job.picture, job) for job in jobs]

    def _make(self, request, picture, job) -> Output | Exception:
        seed = random.SystemRandom().randint(0, MAX_SEED) if request.seed is None else request.seed
        job.on_start(seed, self.identity)
        is_large = (request.width or 0) * (request.height or 0) > 2**20
        seconds = self.step_seconds + is_large * self.stall_seconds
        for step in range(request.num_inference_steps):
            if seconds:
                time.sleep(seconds)  # the step's work
            job.on_step("denoise", step + 1, request.num_inference_steps)
            if job.is_cancelled():
                return RequestError.cancelled()
        timings = {"denoise": 10.0 * request.num_inference_steps, "decode": 5.0}
        shape = CLIP if self.stage is Stage.I2V else (request.height, request.width, 3)
        self._seconds = {
            phase: seconds / (np.prod(shape) / 3e6) for phase, seconds in (("denoise", 0.01), ("decode", 0.005))
        }
        recipe = make_recipe(self.stage, request, {"model": self.identity, "precision": "fp32"}, seed=seed)
        embedded = recipe if request.embed_recipe else None
        source = json.dumps(recipe["parameters"], sort_keys=True) + self.identity
        pixels = np.random.default_rng(list(digest_of(source.encode()).encode())).integers(0, 256, shape, np.uint8)
        if self.stage is Stage.T2I:
            data = media.png_bytes(Image.fromarray(pixels), embedded)
            return Output(data, PNG, seed, timings, recipe, warnings=self.warnings)
        recipe["picture"] = {"sha256": digest_of(picture), "recipe": recipe_of_png(picture)}
        return Output(media.mp4_bytes(pixels, request.fps, embedded), MP4, seed, timings, recipe)


class Picture(_Noise):
    stage = Stage.T2I


class Clip(_Noise):
    stage = Stage.I2V
