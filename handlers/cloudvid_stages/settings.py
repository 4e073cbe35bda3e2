"""What an operator chooses for a stage: the `handler:` section of its YAML, then the environment.

Each setting can be overridden at start by `CLOUDVID_<STAGE>_<SETTING>`, e.g. `CLOUDVID_T2I_MODEL=/models/sd15`; lists
are written with commas, tables as JSON. `docs/settings.md` is written from these classes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cloudvid_schema.faults import faults_of
from cloudvid_schema.limits import over_limits
from cloudvid_schema.protocol import MAX_IMAGE_BYTES, RequestError, Stage

Effect = Literal["exact", "last bits", "visible"]
"""What a setting does to the pixels: nothing, less than one can see (rounding in another order), or something."""


class SettingsError(RuntimeError):
    """A setting is wrong, or names a model that cannot be used; the message says which and what to do."""


def _pixels(effect: Effect) -> Any:
    return Field(json_schema_extra={"effect": effect})


class StageSettings(BaseModel):
    """Settings of one stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    model: str = Field(min_length=1)
    """A Hub id, or a directory in diffusers' layout."""
    mirrors: tuple[str, ...] = ()
    """Hub ids to try if `model` cannot be fetched."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; ignored for a directory."""
    check_weights: Annotated[bool, _pixels("exact")] = True
    """Whether every file is checked against the model's `SHA256SUMS`, if it has one, before loading. A core checks 1 to
    2 GB per second."""
    dtype: Annotated[Literal["auto", "bf16", "fp16", "fp32"], _pixels("visible")] = "auto"
    """Precision of the weights and the computation. auto: fp16 on a GPU, fp32 on a CPU."""
    offload: Annotated[Literal["none", "model", "sequential", "group"], _pixels("exact")] = "none"
    """What stays in the host's memory until the GPU needs it: nothing, whole models, single layers (least memory,
    slowest), or groups of blocks."""
    attention: Annotated[Literal["sdpa", "xformers", "sliced"], _pixels("last bits")] = "sdpa"
    """Torch's own attention; xformers', if installed; or attention computed in slices (less memory, slower)."""
    channels_last: Annotated[bool, _pixels("last bits")] = False
    """Stores convolution weights in channels-last order, which tensor cores prefer."""
    fuse_qkv: Annotated[bool, _pixels("last bits")] = False
    """Computes query, key and value in one matrix product instead of three."""
    compile: Annotated[
        Literal["off", "regional", "full"],
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads a bare `off` as false
        _pixels("last bits"),
    ] = "off"
    """torch.compile: the repeated transformer blocks (quick to compile), or the whole UNet as one graph."""
    compile_cache: str | None = None
    """Folder that keeps compiled code across restarts; an absolute path."""
    warm_up: Annotated[tuple[str, ...], _pixels("exact")] = ()
    """Sizes to run once at load, so that no request waits for it: `768x512`, for i2v `1024x576x25`. With `compile` and
    no size given, the stage's usual size."""
    deep_cache: Annotated[int, Field(ge=0, le=10), _pixels("visible")] = 0
    """DeepCache: computes the inner blocks of the UNet only in every Nth step and reuses their last result in the other
    steps. 0 is off; 2 or 3 is usual."""
    max_pixels: int | None = Field(None, ge=1)
    """Maximum pixels of a picture or frame. For this and the limits below, null means the schema's own limit."""
    max_steps: int | None = Field(None, ge=1)
    """Maximum denoising steps."""
    max_megapixel_steps: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Maximum work: width × height × frames × steps, in millions. For i2v the default is 20000: 25 frames of 1024×576
    in 25 steps are 369, and the most that the schema allows, 268435, would take days."""

    def precision(self, on_gpu: bool) -> str:
        """The precision in force: `fp16`, `bf16` or `fp32`."""
        if self.dtype != "auto":
            return self.dtype
        return "fp16" if on_gpu else "fp32"

    @property
    def limits(self) -> dict[str, float]:
        """What a request may ask for, by the names of the settings that say so."""
        return {name: limit for name, limit in self if name.startswith("max_") and limit is not None}

    def check_limits(self, *, pixels: int, steps: int, frames: int = 1, prompt: str = "") -> None:
        """Return where a request of so many pixels (of each frame) and denoising steps is within the limits.

        Raises:
            RequestError: 422, with every limit that it is over.
        """
        faults = over_limits(self.limits, pixels=pixels, steps=steps, frames=frames, prompt=prompt)
        if faults:
            raise RequestError.invalid(faults)

    def in_force(self) -> dict[str, Any]:
        """Every setting but the limits and what says where the model is: a path of the server is private."""
        kept = self.model_dump(mode="json", exclude={"model", "mirrors", "revision", "lora", "compile_cache"})
        return {name: value for name, value in kept.items() if not name.startswith("max_")}

    def shaping(self) -> dict[str, Any]:
        """The settings other than their defaults that change pixels: they belong to a recipe.

        `dtype` and a decode chunk are not among them: the recipe holds what came of them.
        """
        fields: Mapping[str, Any] = type(self).model_fields
        return {
            name: value
            for name, value in self.in_force().items()
            if name not in ("dtype", "decode_chunk_size")
            and (fields[name].json_schema_extra or {}).get("effect", "exact") != "exact"
            and value != fields[name].default
        }

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if conflicts := "; ".join(self._conflicts()):
            raise ValueError(conflicts)
        return self

    def _conflicts(self) -> Iterator[str]:
        compiles, moves_weights = self.compile != "off", self.offload in ("sequential", "group")
        if self.fuse_qkv and self.attention != "sdpa":
            yield "fuse_qkv works only with attention: sdpa"
        if compiles and moves_weights:
            yield f"compile does not go with offload: {self.offload}, which moves weights in the middle of a graph"
        if self.compile == "full" and self.offload == "model":
            yield "compile: full makes one graph of the UNet, offload: model hooks into it; compile: regional goes"
        if self.compile == "full" and self.deep_cache > 1:
            yield "compile: full makes one graph of the UNet, deep_cache leaves parts of it out; compile: regional goes"
        if self.channels_last and moves_weights:
            yield f"channels_last does not go with offload: {self.offload}, which lays out the weights again"
        if self.deep_cache > 1 and self.offload == "group":
            yield "deep_cache does not go with offload: group, which counts on every block being run"
        if self.deep_cache == 1:
            yield "deep_cache: 1 would leave nothing out; 0 is off, 2 or more is on"
        if self.compile_cache is not None and not compiles:
            yield "compile_cache has no effect with compile: off"
        if self.compile_cache is not None and not Path(self.compile_cache).expanduser().is_absolute():
            yield "compile_cache must be an absolute path: a worker starts in a folder of its own"


class TextToImageSettings(StageSettings):
    """Settings of the text-to-image stage."""

    vae_slicing: Annotated[bool, _pixels("last bits")] = True
    """Decodes the pictures of a batch one after the other; a single picture is not affected."""
    vae_tiling: Annotated[bool, _pixels("visible")] = False
    """Decodes large pictures in overlapping tiles: less memory, but seams may show."""
    scheduler: Annotated[str | None, _pixels("visible")] = None
    """Class of the scheduler, e.g. `DPMSolverMultistepScheduler`; null means the model's own."""
    scheduler_options: Annotated[dict[str, Any], _pixels("visible")] = Field({})
    """Changes to the scheduler's configuration, e.g. `{use_karras_sigmas: true}`."""
    lora: Annotated[str | None, _pixels("visible")] = None
    """LoRA weights, fused into the model: a safetensors file, or `user/repository/file.safetensors` on the Hub."""
    lora_scale: Annotated[float, Field(ge=-4.0, le=4.0, allow_inf_nan=False), _pixels("visible")] = 1.0
    """Strength of the LoRA weights."""
    max_prompt: int | None = Field(None, ge=1)
    """Maximum length of a prompt, in characters."""

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.lora_scale != 1.0 and self.lora is None:
            yield "lora_scale has no effect without lora"
        elif self.lora_scale == 0:
            yield "lora_scale: 0 would leave the LoRA without effect; leave lora out"


class ImageToVideoSettings(StageSettings):
    """Settings of the image-to-video stage."""

    decode_chunk_size: Annotated[int, Field(ge=1, le=128), _pixels("visible")] = 8
    """Frames decoded at once if the request doesn't set it. Fewer are decoded if free memory has no room for that many,
    and half as many each time memory runs out."""
    max_megapixel_steps: float | None = Field(20_000, gt=0, allow_inf_nan=False)
    """As above."""
    max_frames: int | None = Field(None, ge=1)
    """Maximum frames of a clip."""
    max_decode_chunk_size: int | None = Field(None, ge=1)
    """Maximum `decode_chunk_size` that a request may set."""
    max_image_bytes: int = Field(MAX_IMAGE_BYTES, ge=1, le=MAX_IMAGE_BYTES)
    """Maximum size of a picture file to animate, in bytes."""
    max_image_pixels: int = Field(4096 * 4096, ge=1, le=4096 * 4096)
    """Maximum pixels of such a picture; decoding 16.8 million pixels takes up to 257 MiB."""


SETTINGS: dict[Stage, type[StageSettings]] = {Stage.T2I: TextToImageSettings, Stage.I2V: ImageToVideoSettings}
_OF_THE_MODEL = ("mirrors", "revision", "lora", "lora_scale")
"""Settings of the YAML that do not outlive its model, where the environment names another."""


def read_settings(
    stage: Stage, section: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> StageSettings:
    """The settings in force: the `handler:` section of the archive's YAML, and what the environment overrides of it.

    Raises:
        SettingsError: a value breaks its rule, the stage has no such setting, or two do not go together.
    """
    kind, values = SETTINGS[stage], dict(section)
    prefix = f"CLOUDVID_{stage.upper()}_"
    for name, field in kind.model_fields.items():
        text = environment.get(prefix + name.upper(), "")
        if text:
            values[name] = _from_text(prefix + name.upper(), text, field.annotation)
            if name == "model":
                for belonging in _OF_THE_MODEL:
                    values.pop(belonging, None)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = "; ".join(map(str, faults_of(error, kind)))
        raise SettingsError(f"{stage} settings (handler: in {stage}.yaml, or {prefix}*): {found}") from None


def _from_text(variable: str, text: str, annotation: Any) -> Any:
    if annotation == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(","))
    if annotation == dict[str, Any]:
        try:
            return json.loads(text)
        except ValueError:
            raise SettingsError(f"{variable} must be a JSON object, got {text!r}") from None
    return text
