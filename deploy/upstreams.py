"""The servers behind the proxy: this host's own TorchServe, or the proxies of several hosts."""

import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from cloudvid_schema.ports import EXPORTER
from deploy import STAGES, DeployError, nginx_files
from deploy.nginx_files import Address
from deploy.renewal import current

_ASK_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_FIRST_SECONDS = 3.0  # for the first answers, before nginx starts
_TOLD = {
    0: "cannot be reached",
    200: "is ready",
    401: "cannot be asked: the first token here is unknown there",
    404: "is not there",
}


@dataclass(frozen=True)
class OwnServers:
    """TorchServe of this host, or its two, one a stage."""

    servers: Mapping[str, tuple[Address, Path]]
    """Each stage's address and key file."""

    def values(self) -> dict[str, object]:
        """What the templates need to know of them. A stage whose server has no keys now is answered with 503."""
        return {
            "pools": {
                stage: {"servers": {address: True}, "states": {replace(address, port=address.port + EXPORTER): True}}
                for stage, (address, _) in self.servers.items()
            },
            "is_one_server": len({address for address, _ in self.servers.values()}) == 1,
            "hosts": [],
            "scheme": "http",
            "keys": {stage: found.inference for stage, (_, path) in self.servers.items() if (found := current(path))},
        }

    def __str__(self) -> str:
        return ", ".join(f"{stage} on {address}" for stage, (address, _) in self.servers.items())


class Hosts:
    """The proxies of several hosts, each asked every two seconds which of its stages are ready.

    By itself, nginx would send most requests to a host that fails at once: it has the fewest connections.

    Args:
        urls: `https://ADDRESS:PORT`, or `http://`.
        authority: file of the certificates that the hosts' own are checked with.
        name: that those certificates hold.
        tokens: file of tokens that the hosts know too.
    """

    def __init__(self, urls: Sequence[str], authority: Path, name: str, tokens: Path) -> None:
        parts = [urlsplit(url) for url in urls]
        if any("@" in part.netloc for part in parts):
            raise DeployError("--host must not contain a user name or password (@)")
        self.scheme = parts[0].scheme
        if any(part.scheme != self.scheme for part in parts) or self.scheme not in ("http", "https"):
            raise DeployError("--host must be https://ADDRESS:PORT, or http:// for every one of them")
        self.addresses = [Address.parse(part.netloc) for part in parts]
        self._authority, self._name, self._tokens = authority, name, tokens
        self._states: dict[tuple[Address, str], int] = {}

    def watch(self) -> None:
        """Begin to ask; return when each has answered once, or did not in time."""
        first = threading.Semaphore(0)
        for address in self.addresses:
            threading.Thread(target=self._ask_again_and_again, args=(address, first), daemon=True).start()
        for _ in self.addresses:
            first.acquire(timeout=_FIRST_SECONDS)

    def values(self) -> dict[str, object]:
        """What the templates need to know: the hosts where a stage is ready, or, if it is nowhere, all that have it."""
        pools = {}
        for stage in STAGES:
            states = {address: self._states.get((address, stage), 0) for address in self.addresses}
            wanted = {200} if 200 in states.values() else {*states.values()} - {404}
            servers = {address: status in wanted for address, status in states.items()}
            pools[stage] = {"servers": servers, "states": servers}
        # No keys: each host has its own, and gets the caller's token.
        return {
            "pools": pools,
            "is_one_server": False,
            "hosts": self.addresses,
            "scheme": self.scheme,
            "host_name": self._name,
            "keys": None,
        }

    def _ask_again_and_again(self, address: Address, first: threading.Semaphore) -> None:
        while True:
            for stage in STAGES:
                status = self._ask(address, stage)
                if self._states.get((address, stage)) != status:
                    told = _TOLD.get(status, f"is not ready ({status})")
                    print(f"{self.scheme}://{address}: {stage} {told}", flush=True)
                self._states[address, stage] = status
            first.release()
            time.sleep(_ASK_SECONDS)

    def _ask(self, address: Address, stage: str) -> int:
        """The status of the host's /ready; 0 if nothing answers."""
        try:
            token = nginx_files.read_tokens(self._tokens)[0]
            tls: dict[str, Any] = {}
            if self.scheme == "https":  # urllib3's own context refuses names that nginx accepts
                context = ssl.create_default_context(cafile=str(self._authority))  # the file may have been renewed
                tls = {"ssl_context": context, "server_hostname": self._name}
            with urllib3.PoolManager(timeout=_ANSWER_SECONDS, retries=False, **tls) as pool:
                url = f"{self.scheme}://{address}/ready?stage={stage}"
                return pool.request("GET", url, headers={"Authorization": f"Bearer {token}"}, redirect=False).status
        except (OSError, urllib3.exceptions.HTTPError, DeployError):
            return 0

    def __str__(self) -> str:
        return ", ".join(f"{self.scheme}://{address}" for address in self.addresses)
