"""Settings that make a stage faster. Each is seen to have taken effect, or the stage refuses to load."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

from cloudvid_stages.settings import SettingsError, StageSettings


def prepare(pipeline: DiffusionPipeline, settings: StageSettings) -> None:
    """Lay out the weights as the settings say; before the pipeline goes to its device.

    Raises:
        SettingsError: a setting would change nothing.
    """
    if settings.fuse_qkv:
        # Not `unet.fuse_qkv_projections()`: of the spatio-temporal UNet that passes over every attention in silence.
        layers = [module for module in pipeline.unet.modules() if isinstance(module, Attention)]
        for layer in layers:
            layer.fuse_projections(fuse=True)
            layer.set_processor(FusedAttnProcessor2_0())
        if not layers:
            raise SettingsError(f"fuse_qkv has no effect on {type(pipeline.unet).__name__}")
    if settings.channels_last:
        # Convolutions over time have 5 dimensions, for which this order does not exist.
        parameters = (*pipeline.unet.parameters(), *pipeline.vae.parameters())
        weights = [weight for weight in parameters if weight.ndim == 4]
        before = [weight.stride() for weight in weights]
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if before == [weight.stride() for weight in weights]:
            raise SettingsError("channels_last has no effect: the model has no convolution weights to lay out")


def compile_unet(pipeline: DiffusionPipeline, settings: StageSettings) -> None:
    """Have the UNet, or its repeated blocks, compiled when they first run.

    Raises:
        SettingsError: there is no compiler, or nothing to compile.
    """
    if settings.compile == "off":
        return
    if not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        raise SettingsError(
            f"compile: {settings.compile} needs a C++ compiler on this machine (package g++), and there is none"
        )
    if settings.compile_cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(settings.compile_cache).expanduser().absolute())
    import torch._dynamo  # a second of imports that only compiled stages need

    # One graph for all sizes: whether a request gets it must not depend on those before. What still differs (guidance
    # or none, one pixel or one picture) makes a graph of its own; past the limit a request would fail.
    torch._dynamo.config.recompile_limit = 64
    unet: Any = pipeline.unet
    if settings.compile == "full":
        unet.compile(fullgraph=True, dynamic=True)
        return
    # The blocks that a UNet of this family repeats: diffusers names none for the spatio-temporal one.
    unet._repeated_blocks = ["BasicTransformerBlock", "TemporalBasicTransformerBlock"]
    try:
        unet.compile_repeated_blocks(fullgraph=True, dynamic=True)
    except ValueError:
        raise SettingsError(f"compile: regional finds no repeated blocks in {type(unet).__name__}") from None


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters  # as above

    return int(counters["stats"]["unique_graphs"])
