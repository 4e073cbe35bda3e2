"""The record of a batch in its output folder: `manifest.jsonl`, one line per scene; `Store` writes it.

A line that was cut off by a crash is ignored. If a scene has several lines, the last one counts. There are no times, so
the same batch always produces the same bytes.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cloudvid.endpoints.errors import UnusableFolder
from cloudvid_schema.protocol import ImageToVideoRequest, Request, Stage, TextToImageRequest

MANIFEST = "manifest.jsonl"


class Entry(BaseModel):
    """What one stage made of a scene."""

    model_config = ConfigDict(frozen=True)

    file: str
    size: int
    """Bytes."""
    sha256: str
    seed: int
    model: str
    warnings: tuple[str, ...] | None = None
    """What the request asked for and the model did not do, if anything."""
    picture_sha256: str | None = None
    """For a clip: the picture that it was made from."""
    request_sha256: str
    """Digest of the request; see `request_digest`."""
    request: dict[str, Any]
    """The whole request with its defaults."""

    def is_of(self, digest: str) -> bool:
        """Whether the file was made from the request with this digest.

        The manifests of the first versions have digests over the defaults too; for those the request itself decides.
        """
        return digest == self.request_sha256 or digest == _digest(self.request)


class Failure(BaseModel):
    """Why a stage made nothing of a scene the last time."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    error: str
    """Class name of the error; `Cancelled` if somebody asked for the end of its job."""
    message: str


class Record(BaseModel):
    """A scene's line."""

    model_config = ConfigDict(frozen=True)

    id: str
    t2i: Entry | None = None
    i2v: Entry | None = None
    failure: Failure | None = None
    """Until the scene makes progress again."""

    def entry(self, stage: Stage) -> Entry | None:
        """The entry of one stage, if there is one."""
        return self.t2i if stage is Stage.T2I else self.i2v


def request_digest(request: Request) -> str:
    """sha256 over everything in a request that differs from the defaults.

    So a parameter that is added later, with a default, changes no digest; and a default must never change.
    """
    return _digest(request.model_dump(mode="json"))


def _digest(request: Mapping[str, Any]) -> str:
    defaults = _DEFAULTS["prompt" in request]
    given = {name: value for name, value in request.items() if name not in defaults or value != defaults[name]}
    return hashlib.sha256(json.dumps(given, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _defaults(model: type[Request]) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items() if not field.is_required()}


_DEFAULTS = {True: _defaults(TextToImageRequest), False: _defaults(ImageToVideoRequest)}
"""By whether a request has a prompt."""


def scenes_beside(folder: Path, scenes: Collection[str]) -> str | None:
    """What to say of the files of other scenes in an output folder; None if there are none, or nothing can be read."""
    try:
        records = read_records(folder)[0].values()
    except (OSError, UnusableFolder):
        return None
    others = sorted(record.id for record in records if record.id not in scenes and (record.t2i or record.i2v))
    if not others:
        return None
    named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    what = f"{folder} also has files of scenes that are not in this scene file ({named})"
    return f"{what}; they stay, and the gallery leaves them out"


def line_of(record: Record) -> bytes:
    """A scene's line, with its end."""
    return record.model_dump_json(exclude_none=True).encode() + b"\n"


def read_records(folder: Path) -> tuple[dict[str, Record], bool]:
    """The records of a folder by scene, and whether the file has exactly one complete line per scene.

    Raises:
        UnusableFolder: the folder is a file, or the manifest exists but cannot be read.
    """
    records: dict[str, Record] = {}
    is_tidy = True
    try:
        with (folder / MANIFEST).open("rb") as stream:
            for line in stream:
                try:
                    record = Record.model_validate_json(line)
                except ValidationError:
                    is_tidy = False
                    continue
                is_tidy = is_tidy and record.id not in records and line.endswith(b"\n")
                records[record.id] = record
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnusableFolder(f"{folder / MANIFEST} cannot be read: {error.strerror}", error.errno) from None
    return records, is_tidy
