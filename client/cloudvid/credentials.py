"""TorchServe's keys: from a token, or from the key file that the server writes at every start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudvid.local_server import RUN_KEY_FILE

Api = Literal["inference", "management"]


@dataclass(frozen=True)
class Credentials:
    """What is sent as `Authorization: Bearer`. The key file is read anew each time: a server's restart changes it."""

    token: str | None = None
    """A fixed token, for the endpoints."""
    key_file: Path | None = None
    token_manages: bool = False
    """Whether the token may be sent to the management API."""

    def key(self, api: Api) -> str | None:
        """The key for one of TorchServe's APIs, if there is one."""
        if api == "inference" and self.token:
            return self.token
        if self.key_file is not None:
            try:
                return str(json.loads(self.key_file.read_text())[api]["key"])
            except (OSError, ValueError, KeyError, TypeError):
                pass  # being rewritten, or not there: the server will say that a key is missing
        return self.token if self.token_manages else None

    def __str__(self) -> str:
        if self.token:
            return "the token given"
        if self.key_file is None:
            return (
                f"a request without a token (none was given, and there is no {RUN_KEY_FILE} here: --key-file, --token)"
            )
        return (
            f"the keys in {self.key_file}"
            if self.key_file.is_file()
            else f"a request without a key ({self.key_file} is not there)"
        )
