"""What both stages share: how one is loaded, how it reports steps, what it hands back."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, TypeVar

import torch

from cloudvid_schema.parameters import MAX_SEED
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
    pipeline_class: type[Pipeline], settings: StageSettings, device: str
) -> tuple[Pipeline, Checkpoint, torch.dtype]:
    """Load a diffusers pipeline from safetensors alone, without touching the network.

    Raises:
        SettingsError: the model is not on this machine or is of another class.
    """
    checkpoint = find(settings)
    checkpoint.check_class(pipeline_class.__name__)
    dtype = _DTYPES[settings.dtype] if settings.dtype != "auto" else _DTYPES["fp16" if device != "cpu" else "fp32"]
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
    return pipeline.to(device), checkpoint, dtype
