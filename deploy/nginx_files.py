"""What nginx is told beside `deploy/nginx.conf`: four files, from `deploy/templates/`."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy import DeployError

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")  # RFC 6750, and nothing that means anything to nginx
_ENVIRONMENT = Environment(  # noqa: S701 - no HTML
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES = {name: _ENVIRONMENT.get_template(name) for name in _ENVIRONMENT.list_templates(["conf"])}
"""By name. They are read once: a proxy that runs must not follow changes of their folder."""


@dataclass(frozen=True)
class Address:
    """An IP address and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """An address from `127.0.0.1:8443` or `[::1]:8443`.

        Raises:
            DeployError: it is none.
        """
        host, _, port = text.rpartition(":")
        try:
            host = str(ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")))
            if not 0 < int(port) < 65536:
                raise ValueError
        except ValueError:
            raise DeployError(f"{text!r} must be an IP address and a port, like 127.0.0.1:8443") from None
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this host reaches it."""
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_tokens(path: Path) -> list[str]:
    """The tokens in a file, one per line; empty lines and those that begin with # are none.

    Raises:
        DeployError: one is no token, or there is none, or no file.
        OSError: it cannot be read.
    """
    makes = f"`(umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {path})` makes one"
    if not path.exists():
        raise DeployError(f"there is no file of tokens {path}, one a line; {makes}")
    tokens = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise DeployError(
                f"{path}, line {number}: a token must have 16 or more of A-Z a-z 0-9 . _ ~ + / - (and = at its end)"
            )
        tokens.append(token)
    if not tokens:
        raise DeployError(f"{path} holds no token; {makes}")
    return tokens
