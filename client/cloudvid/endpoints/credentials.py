"""TorchServe's keys: a fixed token, or the key file that the server writes at every start."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cloudvid_schema.key_file import Api, read_key

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Credentials:
    """What is sent as `Authorization: Bearer`."""

    token: str | None = None
    """A fixed token for the endpoints."""
    key_file: Path | None = None
    """TorchServe's key_file.json. It is read for every request, since a restart of the server replaces the keys."""
    token_manages: bool = False
    """Whether the token may be sent to the management API."""
    named: tuple[str, ...] = ()
    """Addresses beyond this machine to which the keys of the key file may be sent; to no other are they."""

    def key(self, api: Api, url: str) -> str | None:
        """The key for one of TorchServe's APIs at this address, if there is one."""
        if api == "inference" and self.token:
            return self.token
        if self.key_file is not None and self._goes_to(url):
            with suppress(OSError, ValueError):  # missing or just being rewritten: the server will ask for a key
                return read_key(self.key_file, api)
        return self.token if self.token_manages else None

    def _goes_to(self, url: str) -> bool:
        return urlsplit(url).hostname in LOOPBACK or any(url.startswith(f"{address}/") for address in self.named)

    def describe(self, url: str) -> str:
        """What was sent to this address, for a message."""
        if self.token:
            return "the given token"
        if self.key_file is None:
            return "a request without a key (there is no .run/key_file.json here: give a `key_file` or `token`)"
        if not self._goes_to(url):
            return (
                f"a request without a key (those in {self.key_file} leave this machine only for addresses that are "
                "given explicitly beside the key file)"
            )
        if self.key_file.is_file():
            return f"the keys in {self.key_file}"
        return f"a request without a key ({self.key_file} does not exist)"
