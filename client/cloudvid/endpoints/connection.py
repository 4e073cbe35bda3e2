"""HTTP as the client needs it: changing keys, no proxies, no redirects, and errors of our own tree."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import error_body, plain
from cloudvid.endpoints.credentials import LOOPBACK, Credentials
from cloudvid_schema.faults import Fault
from cloudvid_schema.key_file import Api
from cloudvid_schema.ports import MANAGEMENT

DEFAULT_SERVER = "http://127.0.0.1:8080"
CONNECT_SECONDS = 10.0
"""Timeout of connecting, and of every answer but a stage's."""


@dataclass(frozen=True)
class Connection:
    """Sends requests with the current key."""

    session: requests.Session
    credentials: Credentials
    why_absent: Callable[[str], tuple[str, tuple[str, ...]]] = lambda url: ("", ())
    """Called with an address at which nothing answers: what is known of its server, and the end of its log."""

    def call(self, method: str, url: str, api: Api, **arguments: Any) -> requests.Response:
        """One HTTP exchange, repeated once if the key was refused and the key file has a new one.

        Raises:
            Unreachable: no answer within the timeout.
            Unauthorized: the key is refused.
        """
        arguments = {"timeout": CONNECT_SECONDS, **arguments}
        key = self.credentials.key(api, url)
        while True:
            headers = {**arguments.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key else {})}
            try:
                response = self.session.request(method, url, headers=headers, allow_redirects=False, **arguments)
                refused = response.status_code in (400, 401)
                content = response.content if refused else b""
            except requests.exceptions.SSLError as error:
                raise _tls_error(url, str(error)) from None
            except requests.RequestException as error:
                known, log = self.why_absent(url)
                text = f"nothing answers at {url}: {reason(error)}" + (f"; {known}" if known else "")
                raise errors.Unreachable(text, log=log) from error
            if not refused:
                return response
            body = error_body(response.status_code, content)
            if response.status_code == 400 and body.type != "InvalidKeyException":
                return response
            renewed = self.credentials.key(api, url)
            if renewed == key:
                raise errors.Unauthorized(
                    f"{url} refuses {self.credentials.describe(url)}: {plain(body.message)}", body
                )
            key, arguments["headers"] = renewed, headers


class _KeepAlive(HTTPAdapter):
    """Notices within two minutes that the other end has vanished: a laptop went to sleep, a NAT dropped its entry."""

    _IDLE, _INTERVAL, _PROBES = 60, 15, 4  # seconds, seconds, count

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Use TCP keep-alive on every connection."""
        options["socket_options"] = [
            *HTTPConnection.default_socket_options,
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._IDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self._INTERVAL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self._PROBES),
        ]
        super().init_poolmanager(*arguments, **options)


def plain_session(ca: str | Path | None = None) -> requests.Session:
    """A session that ignores proxies, netrc and the environment; `ca` is its CA bundle (default: the public CAs)."""
    session = requests.Session()
    session.verify = str(ca) if ca else True
    session.trust_env = False  # a ~/.netrc would replace the token, and a proxy would see it
    for scheme in ("http://", "https://"):
        session.mount(scheme, _KeepAlive(pool_maxsize=64, max_retries=0))
    return session


def address(url: str) -> str:
    """A server's address without a trailing slash.

    Raises:
        InvalidInput: it is not an HTTP address, or holds a user name or password, which would show up in messages.
    """
    if "@" in url:
        rule = "a server's address must not contain a user name or password (@); there is a token for that"
        raise errors.InvalidInput([Fault("", rule, has_value=False)])
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        rule = f"must be a server's address of the form {DEFAULT_SERVER}"
        raise errors.InvalidInput([Fault("", rule, url)])
    return url.rstrip("/")


def next_port(url: str, above: int = MANAGEMENT) -> str:
    """The address of what listens so many ports above the endpoints: by default of the management API."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit((parts.scheme, f"{host}:{(parts.port or 8080) + above}", "", "", ""))


def is_local(*urls: str) -> bool:
    """Whether all of these addresses are on this machine."""
    return all(urlsplit(url).hostname in LOOPBACK for url in urls)


def reason(error: requests.RequestException) -> str:
    """What went wrong, without urllib3's object addresses and nested classes."""
    if isinstance(error, requests.ReadTimeout):
        return "no answer within the timeout"
    text = str(error)
    found = re.search(r"(?:\[Errno -?\d+\] |: )([A-Z][a-z][^'\"()\[\]{}<>]*)['\")]*$", text)
    return found[1].strip() if found else type(error).__name__


def _tls_error(url: str, text: str) -> errors.Unreachable:
    """`Untrusted` if trying again is pointless. (A balancer whose server is down just closes the connection.)"""
    if found := re.search(r"certificate verify failed(?:: ([^(]+?) \(_ssl)?", text):
        why = found[1] or "verification failed"
        return errors.Untrusted(
            f"{url}: its certificate is not trusted ({why}); name the CA bundle that verifies it (`ca`)"
        )
    if "wrong version number" in text or "record layer failure" in text:
        return errors.Untrusted(f"{url}: it does not speak TLS; try http://")
    found = re.search(r"\[SSL[^\]]*\] ([^(]+?) \(_ssl", text)
    return errors.Unreachable(f"{url}: TLS fails: {found[1] if found else 'SSLError'}")
