"""What an operator chooses for a stage: the `handler:` section of its YAML, then the environment.

Each setting can be overridden at start by `CLOUDVID_<STAGE>_<SETTING>`, e.g. `CLOUDVID_T2I_MODEL=/models/sd15`.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloudvid_schema.faults import faults_of
from cloudvid_schema.protocol import MAX_IMAGE_BYTES, Stage


class SettingsError(RuntimeError):
    """A setting is wrong, or names a model that cannot be used; the message says which and what to do."""


class StageSettings(BaseModel):
    """Settings of one stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = Field(min_length=1)
    """A Hub id, or a directory in diffusers' layout."""
    mirrors: tuple[str, ...] = ()
    """Hub ids to try where `model` is not to be had."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; of a directory it is ignored."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the weights and the computation. auto: fp16 on a GPU, fp32 on a CPU."""
    max_pixels: int | None = Field(None, ge=1)
    """Most pixels of a picture or a frame. Of this and the limits below: None is the schema's own limit."""
    max_steps: int | None = Field(None, ge=1)
    """Most denoising steps."""
    max_megapixel_steps: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Most work: width x height x frames x steps, in millions."""

    def precision(self, on_gpu: bool) -> str:
        """The precision in force: `fp16`, `bf16` or `fp32`."""
        if self.dtype != "auto":
            return self.dtype
        return "fp16" if on_gpu else "fp32"


class TextToImageSettings(StageSettings):
    """Settings of the text-to-image stage."""

    max_prompt: int | None = Field(None, ge=1)
    """Longest prompt, in characters."""


class ImageToVideoSettings(StageSettings):
    """Settings of the image-to-video stage."""

    decode_chunk_size: int = Field(8, ge=1, le=128)
    """Frames decoded at once where the request does not say."""
    max_frames: int | None = Field(None, ge=1)
    """Most frames of a clip."""
    max_image_bytes: int = Field(MAX_IMAGE_BYTES, ge=1, le=MAX_IMAGE_BYTES)
    """Largest picture file that is animated."""
    max_image_pixels: int = Field(4096 * 4096, ge=1, le=4096 * 4096)
    """Most pixels of such a picture; 16.8 million are 48 MiB once decoded."""


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
        SettingsError: a value breaks its rule, or the stage has no such setting.
    """
    values = dict(section)
    prefix = f"CLOUDVID_{stage.upper()}_"
    for name in kind.model_fields:
        text = environment.get(prefix + name.upper(), "")
        if text:
            values[name] = text.split(",") if name == "mirrors" else text
            if name == "model":
                values["mirrors"] = ()  # the YAML's mirrors are those of the YAML's model
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = "; ".join(map(str, faults_of(error, kind)))
        raise SettingsError(f"{stage} settings (handler: in {stage}.yaml, or {prefix}*): {found}") from None
