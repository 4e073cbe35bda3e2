"""Memory of the device a stage runs on: what is free, what is kept off it, and what it means when it runs out."""

import gc
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline

from cloudvid_schema.protocol import RequestError
from cloudvid_serving.jobs import WorkerUnfit
from cloudvid_stages.settings import SettingsError, StageSettings

_USABLE = 0.8
"""Share of the free memory that a decoding may plan with: convolutions want a workspace too."""


def free_memory(after: BaseException | None = None) -> None:
    """Give back what torch's allocator holds unused, after an exception also what its finished frames hold."""
    if after is not None:
        traceback.clear_frames(after.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had: of the GPU, what its allocator holds unused included, or of the host."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def peak_bytes(device: torch.device) -> int:
    """Most bytes that this process has held: of the GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def frames_that_fit(vae: Any, width: int, height: int, device: torch.device) -> int:
    """How many frames the temporal decoder can decode at once in the memory that is free; at least one.

    At its peak, in the last block, it holds four copies of its second-narrowest feature map at full resolution.
    Counted on the configuration of SVD-XT: 1024 values (4 × 256 channels) for each pixel of each frame, at 128×128 and
    192×128 with 1, 2 and 4 frames.
    """
    frame = 4 * vae.config.block_out_channels[1] * width * height * vae.dtype.itemsize
    return max(1, int(free_bytes(device) * _USABLE / frame))


def place(pipeline: DiffusionPipeline, offload: str, device: torch.device) -> None:
    """Move a pipeline to its device, or have its parts come there when they are needed.

    Raises:
        SettingsError: a part would never come there.
    """
    if offload == "none":
        pipeline.to(device)
        return
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        if isinstance(pipeline.vae, AutoencoderKLTemporalDecoder):
            # diffusers names no blocks of this class: it would hook only `forward`, which is never called.
            pipeline.vae._group_offload_block_modules = ["encoder", "decoder", "quant_conv"]
        pipeline.enable_group_offload(onload_device=device, offload_type="block_level", num_blocks_per_group=1)
    exempt = () if offload == "group" else pipeline._exclude_from_cpu_offload  # these go to the device as they are
    for name, model in pipeline.components.items():
        if not isinstance(model, torch.nn.Module) or name in exempt:
            continue
        # accelerate's hooks, or diffusers', bring the weights
        if not any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in model.modules()):
            raise SettingsError(f"offload: {offload} has no effect on {name} ({type(model).__name__})")


def spare(pipeline: DiffusionPipeline, settings: StageSettings) -> None:
    """Have the VAE and the attention take less memory, as the settings say.

    Raises:
        SettingsError: a part has no such way.
    """
    if getattr(settings, "vae_slicing", False):
        pipeline.vae.enable_slicing()
    if getattr(settings, "vae_tiling", False):
        pipeline.vae.enable_tiling()
    if settings.attention == "sdpa":
        return
    if settings.attention == "sliced":
        pipeline.enable_attention_slicing()
    else:
        try:
            pipeline.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise SettingsError(f"attention: xformers cannot be used here ({type(error).__name__}); use sdpa") from None
    wanted = {"xformers": "XFormersAttnProcessor", "sliced": "SlicedAttnProcessor"}[settings.attention]
    if wanted not in {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()}:
        raise SettingsError(f"attention: {settings.attention} has no effect on {type(pipeline.unet).__name__}")


@contextmanager
def device_faults(device: torch.device) -> Iterator[None]:
    """Tell apart what a failure means, by its type: out of memory is this request's answer; where the device refuses to
    go on afterwards, its context is lost to the process. (Errors of CUDA's libraries come as plain RuntimeErrors, and
    not every AcceleratorError is for good: the device itself is asked.)

    Raises:
        RequestError: 507.
        WorkerUnfit: the process has to end.
    """
    try:
        yield
    except Exception as error:
        is_memory = isinstance(error, torch.OutOfMemoryError)
        try:
            if is_memory:
                free_memory(after=error)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except torch.AcceleratorError as fault:
            raise WorkerUnfit(str(fault).partition("\n")[0]) from error
        if is_memory:
            raise RequestError(507, "OutOfMemory", "out of memory; ask for fewer pixels or frames") from None
        raise
