"""What there is without a server: a plain script that loads both diffusers pipelines, makes each scene's picture and
clip one after the other, and writes the files, in a process with nothing else.

It knows nothing of the stages; only the encoders are theirs, so that the files can be compared.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline

from benchmarks.measure import timed
from cloudvid import Scene
from cloudvid_stages.media import mp4_bytes, png_bytes
from support.processes import new_processes

_PIPELINES: list[Any] = []


def _load(t2i_model: Path, i2v_model: Path) -> None:
    draw, animate = StableDiffusionPipeline, StableVideoDiffusionPipeline
    _PIPELINES.extend([draw.from_pretrained(t2i_model), animate.from_pretrained(i2v_model)])
    for pipeline in _PIPELINES:
        pipeline.set_progress_bar_config(disable=True)


def _make(scene: Mapping[str, Any], folder: Path) -> None:
    t2i, i2v = dict(scene["t2i_params"]), dict(scene["i2v_params"])
    seeds = [torch.Generator("cpu").manual_seed(parameters.pop("seed")) for parameters in (t2i, i2v)]
    draw, animate = _PIPELINES
    picture = draw(scene["scene_desc"], generator=seeds[0], **t2i).images[0]
    (folder / f"{scene['id']}_base_image.png").write_bytes(png_bytes(picture, None))
    usual = {"width": picture.width, "height": picture.height, "decode_chunk_size": 8, "output_type": "np"}
    clip = animate(picture, generator=seeds[1], **usual, **i2v).frames[0]
    frames = (clip * 255).round().astype(np.uint8)
    (folder / f"{scene['id']}_video.mp4").write_bytes(mp4_bytes(frames, i2v["fps"], None))


def _make_all(scenes: list[dict[str, Any]], folder: Path) -> float:
    return timed(lambda: [_make(scene, folder) for scene in scenes])[0]


@contextmanager
def monolith(models: Mapping[str, Path], threads: int = 1) -> Iterator[Callable[[list[Scene], Path], float]]:
    """What makes the files of scenes in a folder, and returns the seconds that the process counted."""
    with (
        pytest.MonkeyPatch.context() as patch,
        new_processes() as process,
    ):
        patch.setenv("OMP_NUM_THREADS", str(threads))
        process.submit(_load, models["t2i"], models["i2v"]).result()

        def make(scenes: list[Scene], folder: Path) -> float:
            asked = [scene.model_dump(mode="json", exclude_unset=True) for scene in scenes]
            return process.submit(_make_all, asked, folder).result()

        yield make
