"""HTTP as the client needs it: keys that change, no proxies, no redirects, and errors of our own tree."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from cloudvid import errors
from cloudvid.answers import error_body, plain
from cloudvid.credentials import Api, Credentials

DEFAULT_SERVER = "http://127.0.0.1:8080"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Connection:
    """Sends requests with the right key."""

    session: requests.Session
    credentials: Credentials

    def call(self, method: str, url: str, api: Api, **arguments: Any) -> requests.Response:
        """One HTTP exchange; with a key that was refused, once more if the key file has a new one."""
        key = self.credentials.key(api)
        while True:
            headers = {**arguments.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key else {})}
            try:
                response = self.session.request(method, url, headers=headers, allow_redirects=False, **arguments)
                refused = response.status_code in (400, 401)
                content = response.content if refused else b""
            except requests.ReadTimeout:
                raise errors.Stalled(f"{url}: no sign of life within the time-out") from None
            except requests.exceptions.SSLError as error:
                kind = errors.Untrusted if _is_final(error) else errors.Unreachable
                raise kind(f"{url}: {_tls_reason(error)}") from None
            except requests.RequestException as error:
                raise errors.Unreachable(f"nothing answers at {url}: {reason(error)}") from None
            if not refused:
                return response
            body = error_body(response.status_code, content)
            if response.status_code == 400 and body.type != "InvalidKeyException":
                return response
            renewed = self.credentials.key(api)
            if renewed == key:
                raise errors.Unauthorized(f"{url} refuses {self.credentials}: {plain(body.message)}", body)
            key, arguments["headers"] = renewed, headers


class _KeepAlive(HTTPAdapter):
    """Notices within two minutes that the other end is gone without a word: a laptop slept, a NAT forgot."""

    _IDLE, _INTERVAL, _PROBES = 60, 15, 4  # seconds, seconds, count

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Every connection with TCP keep-alive."""
        options["socket_options"] = [
            *HTTPConnection.default_socket_options,
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._IDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self._INTERVAL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self._PROBES),
        ]
        super().init_poolmanager(*arguments, **options)


def plain_session(ca: str | Path | None = None) -> requests.Session:
    """A session that leaves the token to us.

    Args:
        ca: file of the certificates that vouch for a server's own; None: the public ones.
    """
    session = requests.Session()
    session.verify = str(ca) if ca else True
    session.trust_env = False  # a ~/.netrc would replace the token, and a proxy would see it
    for scheme in ("http://", "https://"):
        session.mount(scheme, _KeepAlive(pool_maxsize=64, max_retries=0))
    return session


def address(url: str) -> str:
    """A server's address in one form.

    Raises:
        Unreachable: it is none.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise errors.Unreachable(f"{url!r} is no address of a server; one looks like {DEFAULT_SERVER}")
    return url.rstrip("/")


def next_port(url: str) -> str:
    """The management API's usual place: the port above the endpoints'."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit((parts.scheme, f"{host}:{(parts.port or 8080) + 1}", "", "", ""))


def is_local(*urls: str) -> bool:
    """Whether all of these addresses are of this machine alone."""
    return all(urlsplit(url).hostname in LOOPBACK for url in urls)


def reason(error: requests.RequestException) -> str:
    """What went wrong, without the object addresses and nested classes that urllib3 prints."""
    text = str(error)
    found = re.search(r"(?:\[Errno -?\d+\] |: )([A-Z][a-z][^'\"()\[\]{}<>]*)['\")]*$", text)
    return found[1].strip() if found else type(error).__name__


def _is_final(error: requests.exceptions.SSLError) -> bool:
    """Whether it will not be otherwise later; a port that closes may be a balancer's, whose server is down."""
    return "certificate verify failed" in str(error) or _speaks_no_tls(str(error))


def _speaks_no_tls(text: str) -> bool:
    return "wrong version number" in text or "record layer failure" in text


def _tls_reason(error: requests.exceptions.SSLError) -> str:
    """Why no encrypted connection came about, and what to do."""
    text = str(error)
    if found := re.search(r"certificate verify failed: ([^(]+?) \(_ssl", text):
        return f"its certificate is not trusted ({found[1]}); --ca names the file of those that vouch for it"
    if _speaks_no_tls(text):
        return "it does not speak TLS; with http:// it may answer"
    found = re.search(r"\[SSL[^\]]*\] ([^(]+?) \(_ssl", text)
    return f"no TLS with it: {found[1] if found else type(error).__name__}"


def timed_out(error: requests.RequestException) -> bool:
    """Requests reports a read that timed out within a body as a ConnectionError around urllib3's own error."""
    return isinstance(error, requests.ReadTimeout) or "Read timed out" in str(error)
