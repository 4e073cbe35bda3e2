"""What both stages share: how one is loaded, how it reports steps, what it hands back."""

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, TypeVar

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cloudvid_schema.parameters import MAX_SEED
from cloudvid_schema.protocol import RequestError, Stage, WorkerUnfit
from cloudvid_stages.settings import StageSettings
from cloudvid_stages.weights import Checkpoint, find

Phase = Literal["denoise", "decode", "encode"]
OnStep = Callable[[Phase, int, int], None]
"""Called after each step: phase, steps done, steps in all."""
OnStart = Callable[[int, str], None]
"""Called once the request is accepted: seed, model identity."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Pipeline = TypeVar("Pipeline")


@dataclass(frozen=True)
class Output:
    """A finished file."""

    data: bytes
    media_type: str
    seed: int
    timings: dict[str, float]
    """Milliseconds of each phase."""
    recipe: dict[str, Any]
    """The parameters in force, the seed, the model and the versions: what makes the same file again."""


class Meter:
    """Seconds per million pixels, by phase, averaged so that the last ten requests or so count most."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def count(self, timings: dict[str, float], pixels: int, steps: int) -> None:
        """Take in the timings (milliseconds) of a request of so many pixels over all frames, and denoising steps."""
        for phase, per in (("denoise", steps), ("decode", 1)):
            if phase in timings:
                new = timings[phase] / 1000 / per / (pixels / 1e6)
                old = self.seconds.get(phase, new)
                self.seconds[phase] = old + (new - old) * 0.1 if phase in self.seconds else new


@dataclass
class Stopwatch:
    """Times the phases of one request and passes its steps on."""

    on_step: OnStep
    timings: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=perf_counter)

    def step(self, phase: Phase, step: int, steps: int) -> None:
        """A step is done: what has passed since the last one belongs to its phase."""
        now = perf_counter()
        self.timings[phase] = self.timings.get(phase, 0.0) + (now - self._since) * 1000
        self._since = now
        self.on_step(phase, step, steps)


def draw_seed() -> int:
    """A seed for a request that has none, from the system's own randomness: no global generator moves."""
    return random.SystemRandom().randint(0, MAX_SEED)


def generator(seed: int) -> torch.Generator:
    """A request's own generator. On the CPU, so that the starting noise is the same on every device."""
    return torch.Generator("cpu").manual_seed(seed)


def device_name(gpu_id: int | None) -> str:
    """`cuda:N` where the server dealt a GPU and torch sees one, else `cpu`."""
    return f"cuda:{gpu_id}" if gpu_id is not None and gpu_id >= 0 and torch.cuda.is_available() else "cpu"


def load_pipeline(
    pipeline_class: type[Pipeline], stage: Stage, settings: StageSettings, device: str
) -> tuple[Pipeline, Checkpoint, str]:
    """Load a diffusers pipeline from safetensors alone, without touching the network.

    Returns:
        The pipeline on its device, where it came from, and its precision (`fp16`, `bf16`, `fp32`).

    Raises:
        SettingsError: the model is not on this machine or is of another class.
    """
    checkpoint = find(settings)
    checkpoint.check(stage)
    precision = settings.precision(on_gpu=device != "cpu")
    dtype = _DTYPES[precision]
    # diffusers quotes the part of a prompt that CLIP cannot read: no prompt belongs in a log.
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    has_variant = checkpoint.has_fp16_variant
    has_full = any(".fp16" not in file.name for file in checkpoint.path.glob("unet/*.safetensors"))
    pipeline = pipeline_class.from_pretrained(  # type: ignore[attr-defined]
        checkpoint.path,
        dtype=dtype,
        variant="fp16" if has_variant and (dtype is torch.float16 or not has_full) else None,
        use_safetensors=True,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device), checkpoint, precision


def free_memory() -> None:
    """Give back what torch's allocator holds without using it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def device_faults() -> Iterator[None]:
    """Tell apart what a device's failure means, by its type: out of memory is this request's answer, any other leaves
    the process with a CUDA context that cannot be used again.

    Raises:
        RequestError: 507.
        WorkerUnfit: the process has to end.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        free_memory()
        raise RequestError(507, "OutOfMemory", "out of memory; ask for fewer pixels or frames") from None
    except torch.AcceleratorError as error:
        raise WorkerUnfit(str(error).partition("\n")[0]) from error
