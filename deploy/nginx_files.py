"""What nginx is told beside `deploy/nginx.conf`: three files, as text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from deploy.exporter import EXPORTER

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")  # RFC 6750, and nothing that means anything to nginx


class ProxyError(RuntimeError):
    """The proxy cannot run like this; the message says what to change."""


@dataclass(frozen=True)
class Address:
    """An IP address and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """An address from `127.0.0.1:8443` or `[::1]:8443`.

        Raises:
            ProxyError: it is none.
        """
        host, _, port = text.rpartition(":")
        try:
            host = str(ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")))
            if not 0 < int(port) < 65536:
                raise ValueError
        except ValueError:
            raise ProxyError(f"{text!r} must be an IP address and a port, like 127.0.0.1:8443") from None
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this host reaches it."""
        return ip_address(self.host).is_loopback

    def above(self, ports: int) -> "Address":
        """The same host, so many ports higher."""
        return Address(self.host, self.port + ports)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Pool:
    """Servers of one stage: by address, whether each is to be asked."""

    stage: str
    servers: Mapping[str, bool]
    states: Mapping[str, bool]
    """Likewise, of whom is asked for its state."""


def listen(address: Address, tls: bool, inside: Address | None) -> str:
    """listen.conf; with TLS the certificate lies beside it, as certificate.pem and key.pem."""
    lines = [f"listen {address}{' ssl' if tls else ''};"]
    if tls:
        lines += ["ssl_certificate certificate.pem;", "ssl_certificate_key key.pem;"]
    if inside:
        lines.append(f"listen {inside};")
    return _text(lines)


def pools_of_host(servers: Mapping[str, Address], inside: Address | None) -> str:
    """pools.conf before a host's own TorchServe, or its two, one a stage.

    A request for i2v goes to /invocations: TorchServe drops the query of /predictions, and with it the parameters of a
    picture that is sent as the body.
    """
    pools = [Pool(stage, {str(server): True}, {str(server.above(EXPORTER)): True}) for stage, server in servers.items()]
    targets = {"t2i": "/predictions/t2i", "i2v": "/invocations?model_name=i2v&$args"}
    states = {stage: f"{stage}_state" for stage in servers}
    if len(set(servers.values())) == 1:  # one answers for both
        states |= {'""': next(iter(states.values()))}
    return _pools(pools, "http", targets, max_fails=0) + _text(
        [
            *_map("$arg_stage", "$state_pool", states),
            *_map("$server_port", "$is_inside", {str(inside.port): "1"} if inside else {}, default="0"),
        ]
    )


def pools_of_front(pools: Sequence[Pool], scheme: str, host_name: str) -> str:
    """pools.conf before the proxies of several hosts; with TLS the authority of their certificates is in ca.pem."""
    targets = {stage: f"/predictions/{stage}$is_args$args" for stage in ("t2i", "i2v")}
    states = {pool.stage: f"{pool.stage}_state" for pool in pools}
    tls = [
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 4;",
        "proxy_ssl_trusted_certificate ca.pem;",
        "proxy_ssl_server_name on;",
        f"proxy_ssl_name {host_name};",
    ]
    return _pools(pools, scheme, targets, max_fails=1) + _text(
        [
            *_map("$arg_stage", "$state_pool", states),
            *_map("$server_port", "$is_inside", {}, default="0"),
            *(tls if scheme == "https" else []),
        ]
    )


def secrets(tokens: Sequence[str], keys: Mapping[str, str] | None) -> str:
    """secrets.conf: who may call, and the key that each stage's server wants; None: the caller's own token."""
    # A map compares text without regard to case, but not a regular expression.
    patterns = [re.sub("[.+]", r"[\g<0>]", token) for token in tokens]
    known = {f'"~^(?i:bearer) +{pattern}$"': "1" for pattern in patterns}
    lines = _map("$http_authorization", "$caller_is_known", known, default="0")
    if keys is None:
        return _text([*lines, *_map('""', "$authorization", {}, default="$http_authorization")])
    given = {stage: f'"Bearer {key}"' for stage, key in keys.items()}
    return _text([*lines, *_map("$stage", "$authorization", given)])


def read_tokens(path: Path) -> list[str]:
    """The tokens in a file, one a line; empty lines and those that begin with # are none.

    Raises:
        ProxyError: one is no token, or there is none.
        OSError: it cannot be read.
    """
    text = path.read_text(errors="replace")
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1)}
    tokens = {number: line for number, line in lines.items() if line and not line.startswith("#")}
    for number, token in tokens.items():
        if not _TOKEN.fullmatch(token):
            raise ProxyError(
                f"{path}, line {number}: a token must have 16 or more of A-Z a-z 0-9 . _ ~ + / - (and = at its end)"
            )
    if not tokens:
        raise ProxyError(f"{path} holds no token")
    return list(tokens.values())


def _pools(pools: Sequence[Pool], scheme: str, targets: Mapping[str, str], max_fails: int) -> str:
    lines = []
    for pool in pools:
        lines += _upstream(pool.stage, pool.servers, max_fails) + _upstream(f"{pool.stage}_state", pool.states, 0)
    stages = [pool.stage for pool in pools]
    asked = {stage: stage for stage in stages} | {'""': stages[0]}
    lines += _map("$arg_stage", "$stage_asked", asked)
    lines += _map("$route", "$stage", {"t2i": "t2i", "i2v": "i2v"}, default="$stage_asked")
    lines += _map("$stage", "$pool", {stage: stage for stage in stages})
    lines += _map("$stage", "$target", {stage: f'"{targets[stage]}"' for stage in stages})
    lines += _map('""', "$upstream_scheme", {}, default=scheme)
    return _text(lines)


def _upstream(name: str, servers: Mapping[str, bool], max_fails: int) -> list[str]:
    """Strict least connections: the zone makes nginx's processes count together."""
    fails = f"max_fails={max_fails} fail_timeout=5s"
    lines = [f"    server {address} {fails if is_up else 'down'};" for address, is_up in servers.items()]
    return [f"upstream {name} {{", f"    zone {name} 64k;", "    least_conn;", *lines, "}"]


def _map(source: str, name: str, values: Mapping[str, str], default: str = '""') -> list[str]:
    return [f"map {source} {name} {{", f"    default {default};", *(f"    {k} {v};" for k, v in values.items()), "}"]


def _text(lines: Sequence[str]) -> str:
    return "\n".join([*lines, ""])
