"""TorchServe's `key_file.json`, which it writes at every start."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

Api = Literal["inference", "management"]


@dataclass(frozen=True)
class Keys:
    """The contents of the file."""

    inference: str
    management: str
    api: str
    """Creates new ones of the other two."""
    expires: datetime
    """When the first of the other two expires."""


def read_key(path: Path, api: Api) -> str:
    """The key for one of TorchServe's APIs. A copy of the file may lack the others.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such key, or it is just being written.
    """
    try:
        return str(json.loads(path.read_text())[api]["key"])
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} has no key for {api}: {error}") from None


def read_keys(path: Path) -> Keys:
    """All keys in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a key file, or it is just being written.
    """
    document = json.loads(path.read_text())
    try:
        inference, management, api = (str(document[name]["key"]) for name in ("inference", "management", "API"))
        times = [datetime.fromisoformat(document[name]["expiration time"]) for name in ("inference", "management")]
        return Keys(inference, management, api, min(times))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a key file of TorchServe: {error}") from None
