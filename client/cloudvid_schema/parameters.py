"""Every parameter of the two stages: its type, unit, range, default and meaning.

The client validates with these models before anything is sent and the handler validates with them again. The
README's tables, the scene file's JSON Schema and the OpenAPI file are generated from them (`docs/generate.py`).

Names and defaults are those of diffusers 0.42 (`StableDiffusionPipeline.__call__` and
`StableVideoDiffusionPipeline.__call__`) unless a description says otherwise.
"""

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_SEED = 2**32 - 1
"""Largest seed. torch's CPU generator (mt19937) keeps 32 bits of a seed: a larger one would repeat another."""

MAX_SIDE = 2048
"""Longest side of a picture or a frame, in pixels."""

MAX_STEPS = 500
"""Most denoising steps. Of 1000 training steps more would be unevenly spaced, and PNDM fails at 1000."""

MAX_PROMPT = 2000
"""Longest prompt in characters. CLIP itself reads 77 tokens, about 300 characters, and ignores the rest."""

I2V_MULTIPLE = 64
"""SVD's UNet halves the latents (8 pixels each) three times and cannot join odd sizes again: 8 * 2**3."""


def _allow_null(schema: dict[str, Any]) -> None:
    """Let a JSON Schema allow null for whatever may be left out."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and "anyOf" not in field:
            rule = {
                key: field.pop(key) for key in list(field) if key not in ("default", "description", "title", "unit")
            }
            schema["properties"][name] = {"anyOf": [rule, {"type": "null"}], **field}


class Lenient(BaseModel):
    """A model that takes what writers of tables make of JSON: null for what is not given, and 512.0 for 512."""

    model_config = ConfigDict(json_schema_extra=_allow_null)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {
            name: int(value) if _is_whole(value) and kinds.get(name) in (int, int | None) else value
            for name, value in values.items()
            if value is not None or name not in kinds
        }


def _is_whole(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and value.is_integer()


class _Parameters(Lenient):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def given(self) -> dict[str, Any]:
        """The parameters that were set, as plain JSON values."""
        return self.model_dump(mode="json", exclude_none=True)


Prompt = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PROMPT,
        description="What the picture shows. A model reads its first 75 tokens, about 300 characters; "
        "a warning tells what it ignores.",
        json_schema_extra={"unit": "characters"},
    ),
]
Seed = Annotated[
    int | None,
    Field(
        ge=0, le=MAX_SEED, description="Makes the result repeatable. Without it the server draws one and reports it."
    ),
]
_ClipSide = Annotated[
    int | None,
    Field(ge=I2V_MULTIPLE, le=MAX_SIDE, multiple_of=I2V_MULTIPLE, json_schema_extra={"unit": "pixels"}),
]


def not_blank(text: str) -> str:
    """Refuse a text that is only white space.

    Raises:
        PydanticCustomError: nothing but white space.
    """
    if not text.strip():
        raise PydanticCustomError("blank", "must not be blank")
    return text


class TextToImageOptions(_Parameters):
    """Everything of a text-to-image request but its prompt: what a scene's `t2i_params` may hold."""

    negative_prompt: str = Field("", max_length=MAX_PROMPT, json_schema_extra={"unit": "characters"})
    """What the picture should not show."""
    num_inference_steps: int = Field(30, ge=1, le=MAX_STEPS, json_schema_extra={"unit": "steps"})
    """Denoising steps. (diffusers' own default is 50.)"""
    guidance_scale: float = Field(7.5, ge=0.0, le=50.0)
    """How closely the picture follows the prompt; 1 or less turns guidance off."""
    width: int = Field(512, ge=64, le=MAX_SIDE, multiple_of=8, json_schema_extra={"unit": "pixels"})
    """Width of the picture."""
    height: int = Field(512, ge=64, le=MAX_SIDE, multiple_of=8, json_schema_extra={"unit": "pixels"})
    """Height of the picture."""
    seed: Seed = None


class TextToImageParameters(TextToImageOptions):
    """Parameters of `POST /predictions/t2i`."""

    prompt: Prompt

    _prompt_not_blank = field_validator("prompt")(not_blank)


class ImageToVideoParameters(_Parameters):
    """Parameters of `POST /predictions/i2v`, and what a scene's `i2v_params` may hold."""

    width: _ClipSide = Field(
        None,
        description="Width of the clip. Default: the picture's own, rounded down to a multiple of 64; "
        "if only `height` is given, the width that keeps the picture's aspect ratio.",
    )
    height: _ClipSide = None
    """Height of the clip. Default: as for `width`."""
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="How a picture of another size fills the clip: `crop` fills it and cuts off the rest, "
        "`pad` shows the whole picture on black, `stretch` changes its aspect ratio.",
    )
    num_frames: int | None = Field(None, ge=2, le=128, json_schema_extra={"unit": "frames"})
    """Length of the clip. Default: what the model was trained for (SVD-XT 25, SVD 14)."""
    num_inference_steps: int = Field(25, ge=1, le=MAX_STEPS, json_schema_extra={"unit": "steps"})
    """Denoising steps."""
    fps: int = Field(7, ge=1, le=60, json_schema_extra={"unit": "frames per second"})
    """Frame rate: SVD is conditioned on it and the MP4 plays at it."""
    motion_bucket_id: int = Field(127, ge=0, le=255)
    """How much moves: higher values mean more motion."""
    noise_aug_strength: float = Field(0.02, ge=0.0, le=1.0)
    """Noise added to the picture: higher values let the clip depart further from it."""
    decode_chunk_size: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Frames decoded at once: more is steadier but takes more memory. This changes the pixels, so the "
        "recipe records it. Default: the server's setting (8).",
        json_schema_extra={"unit": "frames"},
    )
    min_guidance_scale: float = Field(1.0, ge=0.0, le=50.0)
    """Guidance of the first frame."""
    max_guidance_scale: float = Field(3.0, ge=0.0, le=50.0)
    """Guidance of the last frame; at least `min_guidance_scale`."""
    seed: Seed = None

    @field_validator("max_guidance_scale")
    @classmethod
    def _guidance_rises(cls, value: float, info: ValidationInfo) -> float:
        # diffusers decides on guidance by the last frame and then applies it by the largest: falling scales break it.
        low = info.data.get("min_guidance_scale")
        if low is not None and value < low:
            raise PydanticCustomError("guidance_falls", "must be at least min_guidance_scale ({low})", {"low": low})
        return value
