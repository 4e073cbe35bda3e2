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
    if not description.seconds and before and _what_sets_the_pace(before) == _what_sets_the_pace(description):
        description = description.model_copy(update={"seconds": before.seconds})
    path = _path(description.stage)
    try:
        replace_file(path, description.model_dump_json().encode())
    except OSError:  # a full disk is no reason to fail, but what is there now may be untrue
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _what_sets_the_pace(told: Description) -> tuple[object, ...]:
    return told.model, told.precision, told.settings, told.device.partition(":")[0]


def get(stage: Stage) -> Description | None:
    """What the stage's workers said last."""
    with suppress(OSError, ValidationError):
        return Description.model_validate_json(_path(stage).read_bytes())
    return None
