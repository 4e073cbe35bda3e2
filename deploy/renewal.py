"""Renews TorchServe's keys before they expire, which TorchServe never does by itself (`token_expiration_min`)."""

import contextlib
import http.client
from datetime import UTC, datetime
from pathlib import Path

from cloudvid_schema.key_file import Keys, read_keys

_SECONDS = 10.0  # timeout of TorchServe's answers
_FRACTION = 20  # of their lifetime is left when keys are replaced: for a day, a little more than an hour


class Renewal:
    """Replaces the keys in time; call `renew` regularly.

    Args:
        management_port: of TorchServe, on 127.0.0.1.
        path: the key file.
    """

    def __init__(self, management_port: int, path: Path) -> None:
        self._port, self._path = management_port, path
        self._lifetime: tuple[datetime, float] | None = None  # a time of expiry, and the seconds left when first seen

    def renew(self, now: datetime | None = None) -> bool:
        """Whether it was time and TorchServe has written new keys.

        The old key stops working at once for new requests; running ones continue.
        """
        now = now or datetime.now(UTC)
        keys = current(self._path)
        if keys is None:
            return False
        left = (keys.expires - now).total_seconds()
        if self._lifetime is None or self._lifetime[0] != keys.expires:
            self._lifetime = keys.expires, left
        if left > self._lifetime[1] / _FRACTION:
            return False
        return all(get(self._port, f"/token?type={kind}", keys.api)[0] == 200 for kind in ("management", "inference"))


def current(path: Path) -> Keys | None:
    """The keys, or None if the file does not exist or is just being written."""
    with contextlib.suppress(OSError, ValueError):
        return read_keys(path)
    return None


def get(port: int, path: str, key: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET on 127.0.0.1; the status is 0 if nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
