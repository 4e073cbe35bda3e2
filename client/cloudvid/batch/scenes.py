"""Scene files: all faults are reported at once, each with its place."""

import hashlib
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from cloudvid.endpoints.errors import InvalidSceneFile
from cloudvid_schema import strict_json
from cloudvid_schema.faults import Fault, faults_of, place_of, unknown_key
from cloudvid_schema.parameters import MAX_SEED, ImageToVideoParameters, Lenient, Prompt, TextToImageOptions, not_blank
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A scene's id becomes a file name on any system. An unsuitable one is rejected, never rewritten."""
_DEVICE = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
EXAMPLE = files("cloudvid").joinpath("templates/scenes.json").read_text()
"""An example scene file."""


class Scene(Lenient):
    """A scene: a picture and the clip that is made from it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str = Field(
        description="Names the files: letters, digits, `.`, `_` and `-`, at most 100; unique whatever the case.",
        json_schema_extra={"pattern": ID_PATTERN},
    )
    scene_desc: Prompt = Field(description="What the picture shows: its prompt.")
    motion_desc: str = Field(
        "", max_length=1000, description="How it moves. SVD takes no prompt: this is kept in the clip's metadata."
    )  # a thousand characters fit into the metadata, however they are escaped
    t2i_params: TextToImageOptions = Field(
        default_factory=TextToImageOptions, description="Parameters of the picture, less its prompt."
    )
    i2v_params: ImageToVideoParameters = Field(
        default_factory=ImageToVideoParameters, description="Parameters of the clip."
    )

    _desc_not_blank = field_validator("scene_desc")(not_blank)

    @field_validator("id")
    @classmethod
    def _names_a_file(cls, value: str) -> str:
        if not re.fullmatch(ID_PATTERN, value):
            raise PydanticCustomError(
                "id_pattern", "must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"
            )
        if value.endswith("."):
            raise PydanticCustomError("id_dot", "must not end with a dot")
        if _DEVICE.match(value):
            raise PydanticCustomError("id_device", "must not be a device name of Windows")
        return value

    @property
    def picture_name(self) -> str:
        """File name of the picture."""
        return f"{self.id}_base_image.png"

    @property
    def video_name(self) -> str:
        """File name of the clip."""
        return f"{self.id}_video.mp4"

    def t2i_request(self, embed_recipe: bool = True) -> TextToImageRequest:
        """The request of the picture. If the scene has no seed, it is derived from the id."""
        values = {"seed": seed_of(Stage.T2I, self.id), **self.t2i_params.given()}
        return TextToImageRequest(prompt=self.scene_desc, embed_recipe=embed_recipe, **values)

    def i2v_request(self, embed_recipe: bool = True) -> ImageToVideoRequest:
        """The request of the clip, without its picture. If the scene has no seed, it is derived from the id."""
        values = {"seed": seed_of(Stage.I2V, self.id), **self.i2v_params.given()}
        metadata = {"motion_desc": self.motion_desc} if self.motion_desc else None
        return ImageToVideoRequest(metadata=metadata, embed_recipe=embed_recipe, **values)


def scene_schema() -> dict[str, Any]:
    """JSON Schema of a scene file, for completion and checks in editors."""
    scene = Scene.model_json_schema()
    definitions = scene.pop("$defs")
    definitions["Scene"] = scene
    scenes = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Scene"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "CloudVid scene file",
        "anyOf": [
            scenes,
            {
                "type": "object",
                "properties": {"$schema": {"type": ["string", "null"]}, "scenes": scenes},
                "required": ["scenes"],
                "additionalProperties": False,
            },
        ],
        "$defs": definitions,
    }


def seed_of(stage: Stage, scene_id: str) -> int:
    """The seed of a scene without one: the same id always makes the same picture."""
    digest = hashlib.sha256(f"{stage}:{scene_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & MAX_SEED


def read_scenes(path: str | Path) -> list[Scene]:
    """The scenes of a file.

    Args:
        path: JSON, an array of scenes or `{"$schema": "...", "scenes": [...]}`.

    Raises:
        InvalidSceneFile: with all faults of the file.
    """
    try:
        return parse_scenes(strict_json.loads(Path(path).read_bytes()))
    except InvalidSceneFile as error:
        faults = error.faults
    except (OSError, strict_json.JsonError) as error:
        rule = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        faults = (Fault("", rule, has_value=False),)
    raise InvalidSceneFile(faults, str(path))


def parse_scenes(document: object) -> list[Scene]:
    """The scenes of a parsed scene file.

    Raises:
        InvalidSceneFile: with all faults that were found.
    """
    faults: list[Fault] = []
    entries = document
    if isinstance(document, dict):
        if "scenes" not in document and Scene.model_fields.keys() & document.keys():
            raise InvalidSceneFile([Fault("", "is a single scene; put [ ] around it", has_value=False)])
        known = ("$schema", "scenes")
        for key, value in document.items():
            if key not in known:
                is_list = "scenes" not in document and isinstance(value, list) and isinstance((value or [0])[0], dict)
                rule = unknown_key("scenes" if is_list else key, known)
                faults.append(Fault(place_of((key,)), rule, has_value=False))
        if not isinstance(document.get("$schema"), str | None):
            faults.append(Fault("$schema", "must be a string", document["$schema"]))
        entries = document.get("scenes")
    if not isinstance(entries, list):
        rule = 'must be a JSON array of scenes, or {"scenes": [...]}'
        raise InvalidSceneFile([*faults, Fault("scenes", rule, entries, has_value=entries is not None)])
    if not entries:
        faults.append(Fault("scenes", "must have at least one scene", entries))
    scenes, twice = [], []
    seen: dict[str, int] = {}  # systems that ignore case would give these ids the same files
    for index, entry in enumerate(entries):
        name = entry.get("id") if isinstance(entry, dict) else None
        try:
            scenes.append(Scene.model_validate(entry))
        except ValidationError as error:
            of = f"scene {strict_json.shorten(name)}" if isinstance(name, str) else ""
            found = faults_of(error, Scene, f"scenes[{index}]")
            faults += [replace(fault, of="" if fault.place.endswith("].id") else of) for fault in found]
        if isinstance(name, str) and (first := seen.setdefault(name.casefold(), index)) != index:
            rule = f"must be unique, whatever the case; scenes[{first}] has it"
            twice.append(Fault(f"scenes[{index}].id", rule, name))
    if faults or twice:
        raise InvalidSceneFile([*faults, *twice])
    return scenes
