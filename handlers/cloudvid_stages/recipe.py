"""The recipe of a file: what has to be known to make the same bytes again."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from cloudvid_schema import __version__
from cloudvid_schema.protocol import Stage

_VERSIONS = {"cloudvid": __version__, "diffusers": version("diffusers"), "torch": str(torch.__version__)}


def make_recipe(
    stage: Stage, parameters: dict[str, Any], model: str, metadata: dict[str, Any] | None
) -> dict[str, Any]:
    """The recipe of one file. It holds no time and no host: the same request gives the same recipe."""
    recipe: dict[str, Any] = {"stage": str(stage), "model": model, "parameters": parameters, "versions": _VERSIONS}
    if metadata is not None:
        recipe["metadata"] = metadata
    return recipe


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe as the ASCII text that PNG and MP4 files carry."""
    return json.dumps(recipe, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def digest_of(data: bytes | np.ndarray) -> str:
    """sha256 of a file, or of an array's values in C order, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data).hexdigest()
