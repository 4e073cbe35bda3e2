"""From settings to a pipeline on its device, with every setting in force."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cloudvid_schema.files import sha256
from cloudvid_schema.protocol import Stage
from cloudvid_schema.vocabulary import words
from cloudvid_stages import memory, speed
from cloudvid_stages.deep_cache import DeepCache
from cloudvid_stages.digests import VOCABULARY, check_list
from cloudvid_stages.settings import SettingsError, StageSettings, TextToImageSettings
from cloudvid_stages.weights import PIPELINES, find, find_lora

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline that is ready."""

    pipeline: Any
    identity: str
    """`id@revision` of the model, with `+name@fingerprint` of a LoRA."""
    precision: str
    """Of the weights: `fp16`, `bf16` or `fp32`."""
    dtype: torch.dtype
    """The same, as torch has it."""
    device: torch.device
    deep_cache: DeepCache | None
    vocabulary: frozenset[str] | None
    """The words that the model knows, where its directory lists them."""


def load_pipeline(stage: Stage, settings: StageSettings, device: str) -> LoadedPipeline:
    """Load a diffusers pipeline from safetensors only, without touching the network.

    Raises:
        SettingsError: the model is not on this machine or is of another class, or a setting cannot be had with it.
    """
    checkpoint = find(settings)
    checkpoint.check(stage)
    if settings.check_weights:
        check_list(checkpoint.path, checkpoint.identity)
    identity = checkpoint.identity
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # what asks for `cuda` means this worker's, and opens no context on another
    precision = settings.precision(on_gpu=device != "cpu")
    dtype = _DTYPES[precision]
    # diffusers quotes the part of a prompt that CLIP cannot read: no prompt belongs in a log.
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    has_full = any(".fp16" not in file.name for file in checkpoint.path.glob("unet/*.safetensors"))
    takes_fp16 = checkpoint.has_fp16_variant and (dtype is torch.float16 or not has_full)
    try:
        pipeline = getattr(diffusers, PIPELINES[stage]).from_pretrained(
            checkpoint.path,
            dtype=dtype,
            variant="fp16" if takes_fp16 else None,
            use_safetensors=True,
            local_files_only=True,
        )
    except OSError as error:  # a file is missing or cut short
        reason = str(error).strip().partition("\n")[0].replace(str(checkpoint.path), checkpoint.identity)
        raise SettingsError(f"{identity} is not whole ({reason}); `make weights` fetches it") from None
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(settings, TextToImageSettings):
        _set_scheduler(pipeline, settings)
        if (lora := find_lora(settings)) is not None:
            _add_lora(pipeline, lora, settings.lora_scale)
            identity += f"+{lora.stem}@{sha256(lora)[:12]}*{settings.lora_scale:g}"
    memory.spare(pipeline, settings)
    speed.prepare(pipeline, settings)
    if settings.offload != "none" and device == "cpu":
        rule = "spares the memory of a GPU, and this worker runs on the CPU; use none"
        raise SettingsError(f"offload: {settings.offload} {rule}")
    memory.place(pipeline, settings.offload, torch.device(device))
    deep_cache = DeepCache(pipeline.unet, settings.deep_cache) if settings.deep_cache else None
    speed.compile_unet(pipeline, settings)
    vocabulary = read_vocabulary(checkpoint.path)
    return LoadedPipeline(pipeline, identity, precision, dtype, torch.device(device), deep_cache, vocabulary)


def read_vocabulary(model: Path) -> frozenset[str] | None:
    """The words of a model's `vocabulary.txt` (UTF-8), or None if it has no such file.

    Raises:
        SettingsError: the file is not UTF-8.
    """
    try:
        return frozenset(words((model / VOCABULARY).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise SettingsError(f"model: {VOCABULARY} must be UTF-8: {error}") from None


def _set_scheduler(pipeline: DiffusionPipeline, settings: TextToImageSettings) -> None:
    """Give a pipeline the scheduler that the settings name, with the model's own noise schedule.

    Raises:
        SettingsError: the class does not suit the model, or has no such option.
    """
    if settings.scheduler is None and not settings.scheduler_options:
        return
    own = pipeline.scheduler
    suitable: dict[str, type[SchedulerMixin]] = {kind.__name__: kind for kind in (type(own), *own.compatibles)}
    kind = suitable.get(settings.scheduler or type(own).__name__)
    if kind is None:
        raise SettingsError(f"scheduler: must be one of {', '.join(sorted(suitable))}, got {settings.scheduler}")
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    for name in settings.scheduler_options:
        if name not in known:  # diffusers would ignore it
            raise SettingsError(
                f"scheduler_options: {kind.__name__} has no option {name}; it has {', '.join(sorted(known))}"
            )
    try:
        pipeline.scheduler = kind.from_config(own.config, **settings.scheduler_options)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        raise SettingsError(f"scheduler: {kind.__name__} cannot be used with these options: {error}") from None


def _add_lora(pipeline: DiffusionPipeline, file: Path, scale: float) -> None:
    """Fuse LoRA weights into a pipeline.

    Raises:
        SettingsError: the file is not LoRA weights of this model.
    """
    try:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    except Exception as error:  # diffusers and peft raise what the file led them to
        raise SettingsError(f"lora: {file.name} does not fit this model: {str(error).splitlines()[0][:200]}") from None
    models = [model for model in (pipeline.unet, pipeline.text_encoder) if model is not None]
    weights = [weight for model in models for name, weight in model.named_parameters() if "lora_B" in name]
    if not any(weight.any() for weight in weights):  # zero as the second factor of each product changes nothing
        raise SettingsError(f"lora: {file.name} changes no weight of this model")
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
