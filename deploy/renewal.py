"""Renews TorchServe's keys before they expire, which TorchServe never does by itself (`token_expiration_min`)."""

import contextlib
import http.client
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cloudvid_schema.key_file import Keys, read_keys

_SECONDS = 10.0  # timeout of TorchServe's answers
_FRACTION = 20  # of their lifetime is left when keys are replaced: for a day, a little more than an hour


@dataclass
class Renewal:
    """Replaces the keys in time; call `renew` regularly."""

    management_port: int
    path: Path
    """The key file."""
    _lives: dict[datetime, float] = field(default_factory=dict)
    """For each time of expiry the seconds that were left when it was first seen."""

    def renew(self, now: datetime | None = None) -> bool:
        """Whether it was time and TorchServe has written new keys.

        The old key stops working at once for new requests; running ones continue.
        """
        if (keys := current(self.path)) is None:
            return False
        left = (keys.expires - (now or datetime.now(UTC))).total_seconds()
        if left > self._lives.setdefault(keys.expires, left) / _FRACTION:
            return False
        kinds = ("management", "inference")
        return all(get(self.management_port, f"/token?type={kind}", keys.api)[0] == 200 for kind in kinds)


def current(path: Path) -> Keys | None:
    """The keys, or None if the file does not exist or is just being written."""
    with contextlib.suppress(OSError, ValueError):
        return read_keys(path)
    return None


def get(port: int, path: str, key: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET on 127.0.0.1; the status is 0 if nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    return 0, b""
