"""What an operator chooses for a stage: the `handler:` section of its YAML, then the environment.

Each setting can be overridden at start by `CLOUDVID_<STAGE>_<SETTING>`, e.g. `CLOUDVID_T2I_MODEL=/models/sd15`; lists
are written with commas, tables as JSON. `docs/settings.md` is written from these classes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cloudvid_schema.faults import faults_of
from cloudvid_schema.protocol import MAX_IMAGE_BYTES, Stage

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
    """Hub ids to try where `model` is not to be had."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; of a directory it is ignored."""
    check_weights: Annotated[bool, _pixels("exact")] = True
    """Whether every file is held against the model's `SHA256SUMS`, where it has one, before it is loaded: a core does
    1 to 2 GB in a second."""
    dtype: Annotated[Literal["auto", "bf16", "fp16", "fp32"], _pixels("visible")] = "auto"
    """Precision of the weights and the computation. auto: fp16 on a GPU, fp32 on a CPU."""
    offload: Annotated[Literal["none", "model", "sequential", "group"], _pixels("exact")] = "none"
    """What stays in the host's memory until it is needed on the GPU: nothing, whole models, single layers (least
    memory, slowest), or groups of blocks."""
    attention: Annotated[Literal["sdpa", "xformers", "sliced"], _pixels("last bits")] = "sdpa"
    """Torch's own attention; xformers', where it is installed; or one computed in slices (less memory, slower)."""
    channels_last: Annotated[bool, _pixels("last bits")] = False
    """Convolution weights in channels-last order, which tensor cores prefer."""
    fuse_qkv: Annotated[bool, _pixels("last bits")] = False
    """One matrix product for query, key and value in place of three."""
    compile: Annotated[
        Literal["off", "regional", "full"],
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads a bare `off` as false
        _pixels("last bits"),
    ] = "off"
    """torch.compile: the repeated transformer blocks (quick to compile), or the whole UNet as one graph."""
    compile_cache: str | None = None
    """Folder that keeps compiled code over restarts."""
    warm_up: Annotated[tuple[str, ...], _pixels("exact")] = ()
    """Sizes to run once at load, so that no request waits for it: `768x512`, of i2v `1024x576x25`. With `compile` and
    none named: the stage's usual one."""
    deep_cache: Annotated[int, Field(ge=0, le=10), _pixels("visible")] = 0
    """DeepCache: the inner blocks of the UNet are computed in one step of so many, and their last result is used in
    the others. 0 is off; 2 or 3 is usual."""
    max_pixels: int | None = Field(None, ge=1)
    """Most pixels of a picture or a frame. Of this and the limits below: null is the schema's own limit."""
    max_steps: int | None = Field(None, ge=1)
    """Most denoising steps."""
    max_megapixel_steps: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Most work: width × height × frames × steps, in millions."""

    def precision(self, on_gpu: bool) -> str:
        """The precision in force: `fp16`, `bf16` or `fp32`."""
        if self.dtype != "auto":
            return self.dtype
        return "fp16" if on_gpu else "fp32"

    @property
    def limits(self) -> dict[str, float]:
        """What a request may ask for, by the names of the settings that say so."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name.startswith("max_")}
        return {name: limit for name, limit in named.items() if limit is not None}

    def in_force(self) -> dict[str, Any]:
        """Every setting but the limits and what says where the model is: a path of the server is private."""
        kept = self.model_dump(mode="json", exclude={"model", "mirrors", "revision", "lora", "compile_cache"})
        return {name: value for name, value in kept.items() if not name.startswith("max_")}

    def shaping(self) -> dict[str, Any]:
        """The settings other than their defaults that change pixels: they belong to a recipe.

        `dtype` and a decode chunk are not among them: the recipe holds what came of them.
        """
        return {
            name: value
            for name, value in self.in_force().items()
            if name not in ("dtype", "decode_chunk_size")
            and (type(self).model_fields[name].json_schema_extra or {}).get("effect", "exact") != "exact"  # type: ignore[union-attr]
            and value != type(self).model_fields[name].default
        }

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        refused = [
            (self.fuse_qkv and self.attention != "sdpa", "fuse_qkv works only with attention: sdpa"),
            (
                self.compile != "off" and self.offload in ("sequential", "group"),
                f"compile does not go with offload: {self.offload}, which moves weights in the middle of a graph",
            ),
            (
                self.compile == "full" and self.offload == "model",
                "compile: full makes one graph of the UNet, offload: model hooks into it; compile: regional goes",
            ),
            (
                self.compile == "full" and self.deep_cache > 1,
                "compile: full makes one graph of the UNet, deep_cache leaves parts of it out; compile: regional goes",
            ),
            (
                self.channels_last and self.offload in ("sequential", "group"),
                f"channels_last does not go with offload: {self.offload}, which lays out the weights again",
            ),
            (
                self.deep_cache > 1 and self.offload == "group",
                "deep_cache does not go with offload: group, which counts on every block being run",
            ),
            (self.deep_cache == 1, "deep_cache: 1 would leave nothing out; 0 is off, 2 or more is on"),
            (
                self.compile_cache is not None and self.compile == "off",
                "compile_cache has no effect with compile: off",
            ),
            (
                self.compile_cache is not None and not Path(self.compile_cache).expanduser().is_absolute(),
                "compile_cache must be an absolute path: a worker starts in a folder of its own",
            ),
        ]
        if messages := [message for is_so, message in refused if is_so]:
            raise ValueError("; ".join(messages))
        return self


class TextToImageSettings(StageSettings):
    """Settings of the text-to-image stage."""

    vae_slicing: Annotated[bool, _pixels("last bits")] = True
    """Pictures of a batch are decoded one after the other; a single picture is not affected."""
    vae_tiling: Annotated[bool, _pixels("visible")] = False
    """Large pictures are decoded in overlapping tiles: less memory, seams that may show."""
    scheduler: Annotated[str | None, _pixels("visible")] = None
    """Class of the scheduler, e.g. `DPMSolverMultistepScheduler`; null is the model's own."""
    scheduler_options: Annotated[dict[str, Any], _pixels("visible")] = Field({})
    """What to change in the scheduler's configuration, e.g. `{use_karras_sigmas: true}`."""
    lora: Annotated[str | None, _pixels("visible")] = None
    """LoRA weights, fused into the model: a safetensors file, or `user/repository/file.safetensors` on the Hub."""
    lora_scale: Annotated[float, Field(ge=-4.0, le=4.0, allow_inf_nan=False), _pixels("visible")] = 1.0
    """How strongly they work."""
    max_prompt: int | None = Field(None, ge=1)
    """Longest prompt, in characters."""

    @model_validator(mode="after")
    def _lora_fits(self) -> Self:
        if self.lora_scale != 1.0 and self.lora is None:
            raise ValueError("lora_scale has no effect without lora")
        if self.lora_scale == 0:
            raise ValueError("lora_scale: 0 would leave the LoRA without effect; leave lora out")
        return self


class ImageToVideoSettings(StageSettings):
    """Settings of the image-to-video stage."""

    decode_chunk_size: Annotated[int, Field(ge=1, le=128), _pixels("visible")] = 8
    """Frames decoded at once where the request does not say. Fewer are taken where free memory has no room for so
    many, and half as many each time memory runs out."""
    max_frames: int | None = Field(None, ge=1)
    """Most frames of a clip."""
    max_decode_chunk_size: int | None = Field(None, ge=1)
    """Most frames that a request may have decoded at once."""
    max_image_bytes: int = Field(MAX_IMAGE_BYTES, ge=1, le=MAX_IMAGE_BYTES)
    """Largest picture file that is animated."""
    max_image_pixels: int = Field(4096 * 4096, ge=1, le=4096 * 4096)
    """Most pixels of such a picture; 16.8 million take up to 257 MiB while they are decoded."""


_OF_THE_MODEL = ("mirrors", "revision", "lora", "lora_scale")
"""Settings of the YAML that do not outlive its model, where the environment names another."""
Settings = TypeVar("Settings", bound=StageSettings)


def read_settings(
    kind: type[Settings], stage: Stage, section: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Settings:
    """The settings in force.

    Args:
        kind: the stage's class of settings.
        stage: whose settings.
        section: the `handler:` section of the archive's YAML.
        environment: where overrides are looked for.

    Raises:
        SettingsError: a value breaks its rule, the stage has no such setting, or two do not go together.
    """
    values = dict(section)
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
