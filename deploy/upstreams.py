"""What the proxy stands before: this host's own TorchServe, or the proxies of several hosts."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy import nginx_files
from deploy.archives import STAGES
from deploy.nginx_files import Address, Pool, ProxyError
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


class OwnServers:
    """TorchServe of this host, or its two, one a stage.

    Args:
        servers: by stage, address and key file.
        inside: where /ready, /live and /metrics are answered without a token.
    """

    def __init__(self, servers: Mapping[str, tuple[Address, Path]], inside: Address | None) -> None:
        self._addresses = {stage: address for stage, (address, _) in servers.items()}
        self._key_files = {stage: path for stage, (_, path) in servers.items()}
        self._inside = inside
        for stage, address in self._addresses.items():
            if not address.is_loopback:
                raise ProxyError(f"--{stage}: TorchServe must be on this host's loopback, got {address}")

    def files(self, tokens: Sequence[str]) -> dict[str, str]:
        """Files for nginx about them. A stage whose server has no keys now is answered with 503."""
        keys = {stage: found.inference for stage, path in self._key_files.items() if (found := current(path))}
        return {
            "pools.conf": nginx_files.pools_of_host(self._addresses, self._inside),
            "secrets.conf": nginx_files.secrets(tokens, keys),
        }

    def __str__(self) -> str:
        return ", ".join(f"{stage} on {address}" for stage, address in self._addresses.items())


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
        self.scheme = parts[0].scheme
        if any(part.scheme != self.scheme for part in parts) or self.scheme not in ("http", "https"):
            raise ProxyError("--host must be https://ADDRESS:PORT, or http:// for every one of them")
        self.addresses = [Address.parse(part.netloc) for part in parts]
        self._name, self._tokens = name, tokens
        self._authority = authority
        self._states: dict[tuple[Address, str], int] = {}

    def watch(self) -> None:
        """Begin to ask; return when each has answered once, or did not in time."""
        first = threading.Semaphore(0)
        for address in self.addresses:
            threading.Thread(target=self._ask_again_and_again, args=(address, first), daemon=True).start()
        for _ in self.addresses:
            first.acquire(timeout=_FIRST_SECONDS)

    def files(self, tokens: Sequence[str]) -> dict[str, str]:
        """Files for nginx about them: of each stage those hosts that are ready, or, where none is, all that have it."""
        pools = []
        for stage in STAGES:
            states = {address: self._states.get((address, stage), 0) for address in self.addresses}
            ready = {address for address, status in states.items() if status == 200}
            asked = ready or {address for address, status in states.items() if status != 404}
            servers = {str(address): address in asked for address in self.addresses}
            pools.append(Pool(stage, servers, servers))
        return {
            "pools.conf": nginx_files.pools_of_front(pools, self.scheme, self._name),
            "secrets.conf": nginx_files.secrets(tokens, None),
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
        """The status of the host's /ready; 0 where nothing answers."""
        try:
            token = nginx_files.read_tokens(self._tokens)[0]
            with socket.create_connection((address.host, address.port), timeout=_ANSWER_SECONDS) as plain:
                connection = http.client.HTTPConnection(address.host, address.port)
                connection.sock = plain
                if self.scheme == "https":  # the authority's file may have been renewed
                    tls = ssl.create_default_context(cafile=str(self._authority))
                    connection.sock = tls.wrap_socket(plain, server_hostname=self._name)
                connection.request("GET", f"/ready?stage={stage}", headers={"Authorization": f"Bearer {token}"})
                return connection.getresponse().status
        except (OSError, http.client.HTTPException, ProxyError):
            return 0

    def __str__(self) -> str:
        return ", ".join(f"{self.scheme}://{address}" for address in self.addresses)
