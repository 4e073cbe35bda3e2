"""One line in a worker's log for each request: what became of it, never what it says.

`CLOUDVID_LOG_FORMAT=json` makes each of these lines a JSON object. Every text in them comes from the server or matches
a pattern: TorchServe obeys some of what a worker prints.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

FORMATS = ("text", "json")
_VARIABLE = "CLOUDVID_LOG_FORMAT"


class RequestLog:
    """Writes the lines in the form that the environment names.

    Raises:
        ValueError: it names another form.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._format = environment.get(_VARIABLE) or FORMATS[0]
        if self._format not in FORMATS:
            raise ValueError(f"{_VARIABLE} must be one of {', '.join(FORMATS)}, got {self._format!r}")

    def write(self, **fields: Any) -> None:
        """Write a line; what is None is left out."""
        known = {name: value for name, value in fields.items() if value is not None}
        if self._format == "json":
            logger.info("%s", json.dumps(known))
        else:
            logger.info("request %s", " ".join(f"{name}={value}" for name, value in known.items()))
