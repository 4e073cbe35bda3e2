"""The command `inspect`: what made a file, and a scene that makes it again."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloudvid.batch.media import read_recipe
from cloudvid.batch.scenes import ID_PATTERN
from cloudvid.endpoints.errors import OutputError
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageOptions


def inspect(
    file: Annotated[Path, typer.Argument(help="A PNG or MP4 file that CloudVid made.", show_default=False)],
    as_scene: Annotated[
        bool, typer.Option("--as-scene", help="Print a scene that makes the same bytes again.")
    ] = False,
) -> None:
    """Show the recipe inside a file."""
    if not file.is_file():  # nor a pipe, at which reading would wait
        raise typer.BadParameter(f"{file} is {'no file' if file.exists() else 'not there'}", param_hint="FILE")
    recipe = read_recipe(file)
    if recipe is None:
        raise OutputError(f"{file} holds no recipe of CloudVid's")
    is_utf8 = sys.stdout.encoding.lower() == "utf-8"
    text = json.dumps([scene_of(recipe, file)] if as_scene else recipe, indent=2, ensure_ascii=not is_utf8)
    # The file may be a stranger's: what would steer a terminal, or cannot be encoded, stays escaped.
    print("".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text))


def scene_of(recipe: dict[str, Any], file: Path) -> dict[str, Any]:
    """A scene, as a scene file holds it, that makes the file again with the same model and hardware.

    Raises:
        OutputError: a clip whose picture is no picture of CloudVid's.
    """
    picture = recipe if recipe["stage"] == "t2i" else _object(_object(recipe, "picture"), "recipe")
    prompt = _object(picture, "parameters").get("prompt")
    if not isinstance(prompt, str):
        raise OutputError(f"{file} was made from a picture without a recipe: no scene makes it again")
    name = re.sub(r"(_base_image|_video)$", "", file.stem)
    scene: dict[str, Any] = {
        "id": name if re.fullmatch(ID_PATTERN, name) else "scene",
        "scene_desc": prompt,
        "t2i_params": _given(picture["parameters"], TextToImageOptions),
    }
    metadata = dict(_object(recipe, "metadata"))
    if recipe["stage"] == "i2v":
        scene["i2v_params"] = _given(_object(recipe, "parameters"), ImageToVideoParameters)
        if motion := metadata.pop("motion_desc", ""):
            scene["motion_desc"] = motion
    if metadata or (recipe is not picture and picture.get("metadata")):
        print("note: the file also carries metadata that no scene holds; its bytes will differ there", file=sys.stderr)
    return scene


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key, or an empty one: a file may hold anything."""
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _given(parameters: dict[str, Any], model: type[TextToImageOptions | ImageToVideoParameters]) -> dict[str, Any]:
    """The parameters that a scene's section takes."""
    return {name: value for name, value in parameters.items() if name in model.model_fields and value is not None}
