"""What workers say of themselves, as files beside their logs: one that is busy cannot be asked.

The files outlive the server, so that after a restart its pace is known before its first request.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from cloudvid_schema.files import replace_file
from cloudvid_schema.protocol import Description, Stage


def _path(stage: Stage) -> Path:
    return Path(os.environ.get("LOG_LOCATION") or tempfile.gettempdir()) / f"{stage}.description.json"


def put(description: Description) -> None:
    """Write what a worker says of itself. One that has measured nothing yet has the pace of its predecessor."""
    before = get(description.stage)
    if not description.seconds and before and (before.model, before.device) == (description.model, description.device):
        description = description.model_copy(update={"seconds": before.seconds})
    with suppress(OSError):  # a full disk is no reason to fail
        replace_file(_path(description.stage), description.model_dump_json().encode())


def get(stage: Stage) -> Description | None:
    """What the stage's workers said last."""
    with suppress(OSError, ValidationError):
        return Description.model_validate_json(_path(stage).read_bytes())
    return None
