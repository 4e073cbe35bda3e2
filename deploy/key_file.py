"""TorchServe's `key_file.json`: read, and renewed before its keys expire.

TorchServe writes the file at each start. Its keys expire (`token_expiration_min` in config.properties), and it makes
no others by itself: a server that runs for longer would refuse everyone.
"""

import http.client
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_SECONDS = 10.0  # for one answer of TorchServe


@dataclass(frozen=True)
class Keys:
    """What the file holds."""

    inference: str
    management: str
    api: str
    """Makes new ones of the other two."""
    expires: datetime
    """When the first of them does."""


def read_keys(path: Path) -> Keys | None:
    """The keys, or None where the file is not there, or is being written."""
    try:
        content = json.loads(path.read_text())
        inference, management = content["inference"], content["management"]
        return Keys(
            inference=str(inference["key"]),
            management=str(management["key"]),
            api=str(content["API"]["key"]),
            expires=min(datetime.fromisoformat(each["expiration time"]) for each in (inference, management)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Renewal:
    """Makes new keys in time; asked again and again.

    Args:
        management_port: of TorchServe, on 127.0.0.1.
        path: of the key file.
    """

    _FRACTION = 20  # of their life is left to keys that are replaced: of a day somewhat more than an hour

    def __init__(self, management_port: int, path: Path) -> None:
        self._port, self._path = management_port, path
        self._life: tuple[datetime, float] | None = None  # a point of expiry, and seconds to it when it was first seen

    def renew(self, now: datetime | None = None) -> bool:
        """Whether it was time, and TorchServe has written new keys.

        A key is replaced at once: what is asked with the old one from then on is refused, what runs already goes on.
        """
        now = now or datetime.now(UTC)
        keys = read_keys(self._path)
        if keys is None:
            return False
        left = (keys.expires - now).total_seconds()
        if self._life is None or self._life[0] != keys.expires:
            self._life = keys.expires, left
        if left > self._life[1] / self._FRACTION:
            return False
        return all(call(self._port, f"/token?type={kind}", keys.api)[0] == 200 for kind in ("management", "inference"))


def call(port: int, path: str, key: str | None = None) -> tuple[int, bytes]:
    """Status and body of one GET on this host's loopback; 0 where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
