"""The recipe of a file: what has to be known to make the same bytes again."""

import hashlib
import io
import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from cloudvid_schema import __version__, strict_json
from cloudvid_schema.protocol import MAX_DEPTH, RECIPE_KEY, Stage, depth

_VERSIONS = {"cloudvid": __version__, "diffusers": version("diffusers"), "torch": str(torch.__version__)}

_NOT_PARAMETERS = {"metadata", "embed_recipe"}  # of a request: they do not shape its pixels
_MAX_RECIPE = 2**16  # characters; ours have about a thousand, and a caller's picture may hold anything


class RecipeTooLong(ValueError):
    """The recipe of a picture would take more room in its clip's than it may."""

    def __init__(self) -> None:
        super().__init__(f"its recipe has more than {_MAX_RECIPE} characters; the clip's is without it")


def make_recipe(stage: Stage, request: Any, made_with: dict[str, Any], **in_force: Any) -> dict[str, Any]:
    """The recipe of a request's file. It holds no time and no host: the same request gives the same recipe.

    Args:
        made_with: what shapes the pixels beside the parameters: `model`, `precision`, the `settings` that do.
        in_force: parameters whose value is not the request's own.
    """
    parameters = request.model_dump(exclude=_NOT_PARAMETERS) | in_force
    recipe = {"stage": str(stage), **made_with, "parameters": parameters, "versions": _VERSIONS}
    return recipe if request.metadata is None else recipe | {"metadata": request.metadata}


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe as the ASCII text that PNG and MP4 files carry."""
    return json.dumps(recipe, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def recipe_of_png(data: bytes) -> dict[str, Any] | None:
    """The recipe inside a PNG file that this program made, or None.

    Raises:
        RecipeTooLong: what looks like one is too long.
    """
    if not data.startswith(b"\x89PNG"):
        return None
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        text = getattr(image, "text", {}).get(RECIPE_KEY, "")
    if len(text) > _MAX_RECIPE:
        raise RecipeTooLong
    try:
        recipe = strict_json.loads(text) if text else None
        if not isinstance(recipe, dict) or depth(recipe) > MAX_DEPTH:
            return None
        length = len(recipe_text(recipe))
    except ValueError:
        return None
    if length > _MAX_RECIPE:
        raise RecipeTooLong
    return recipe


def digest_of(data: bytes | np.ndarray) -> str:
    """sha256 of a file, or of an array's values in C order, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data).hexdigest()
