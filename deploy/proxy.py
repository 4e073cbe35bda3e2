"""Runs nginx before the model servers: TLS, tokens, limits, and the routes that callers need.

Before a host's own TorchServe, or its two, one a stage (ADDRESS=KEY_FILE, as `deploy/server.py` started them; without
`--t2i` and `--i2v` it is the one of `make start`):

    proxy.py --tokens FILE --listen 0.0.0.0:8443 --cert CERT --key KEY --t2i 127.0.0.1:8080=.run/key_file.json ...

Before the proxies of several hosts, each request to the host that has the fewest:

    proxy.py --tokens FILE --listen 0.0.0.0:443 --cert CERT --key KEY --host https://10.0.0.1:8443 --host ... --ca CA

The tokens of callers stand in a file, one a line. A change of it, of a certificate, or of TorchServe's keys (each start
makes new ones) takes effect at once. SIGTERM lets running requests end, SIGINT or a second SIGTERM does not.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from deploy import nginx_files
from deploy.archives import STAGES
from deploy.nginx_files import Address, ProxyError
from deploy.torchserve import PORTS, running_in
from deploy.upstreams import Hosts, OwnServers

_ROOT = Path(__file__).resolve().parent.parent
_RUN_DIR = _ROOT / ".run"
_EXAMPLE = "127.0.0.1:8080=.run/key_file.json"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_SECONDS = 0.2  # between two looks at the files


class Proxy:
    """One nginx in the foreground, in a folder that goes with it.

    Args:
        address: where it listens.
        tokens: file of the callers' tokens.
        upstream: what it stands before.
        tls: files of the certificate and its key; None: plain HTTP.
        authority: file of the certificates that the hosts' own are checked with.
        inside: a second address, for a cluster's own eyes.
    """

    def __init__(
        self,
        address: Address,
        tokens: Path,
        upstream: OwnServers | Hosts,
        *,
        tls: tuple[Path, Path] | None = None,
        authority: Path | None = None,
        inside: Address | None = None,
    ) -> None:
        self._address, self._tokens, self._inside, self._upstream = address, tokens, inside, upstream
        self._has_tls = tls is not None
        self._links = dict(zip(("certificate.pem", "key.pem"), tls or (), strict=False))
        if authority:
            self._links["ca.pem"] = authority
        self._told: tuple[dict[str, str], list[bytes]] | None = None
        self._complaint = ""
        self._signs: list[int] = []

    def run(self) -> int:
        """Run until a signal or nginx itself ends it; the exit code.

        Raises:
            ProxyError: a file cannot be read, or there is no nginx.
        """
        binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if not binary:
            raise ProxyError("no nginx here; `apt-get install nginx-light`, or the like of another system, brings one")
        if _listens(self._address):
            raise ProxyError(f"{self._address}: another program listens there already")
        os.umask(0o077)  # the files hold tokens and keys
        # Started by root, its processes run as nobody, and keep large bodies in folders of their own in there.
        folder = Path(tempfile.mkdtemp(prefix="cloudvid-proxy-"))
        folder.chmod(0o711)
        try:
            shutil.copy(_ROOT / "deploy/nginx.conf", folder)
            for name, target in self._links.items():
                (folder / name).symlink_to(target.absolute())
            if isinstance(self._upstream, Hosts):
                self._upstream.watch()
            self._write(*self._read(), folder)
            command = [binary, "-e", "stderr", "-p", f"{folder}/", "-c", str(folder / "nginx.conf")]
            # It reopens its standard output by name, which only works with a pipe.
            with self._heard(), subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_end_with_parent) as nginx:  # noqa: PLW1509
                relay = threading.Thread(target=_relay, args=(nginx.stdout,))
                relay.start()
                code = self._watch(nginx, folder)
                relay.join()
                return code
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _watch(self, nginx: subprocess.Popen[bytes], folder: Path) -> int:
        is_announced = is_ending = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = nginx.wait(timeout=_SECONDS)
                    return 0 if is_ending else code or 1
                while self._signs:
                    is_gentle = self._signs.pop(0) == signal.SIGTERM and not is_ending
                    nginx.send_signal(signal.SIGQUIT if is_gentle else signal.SIGTERM)
                    is_ending = True
                if is_ending:
                    continue
                if not is_announced:  # until it listens, a signal would end it
                    if is_announced := _listens(self._address):
                        scheme = "https" if self._has_tls else "http"
                        print(f"proxy on {scheme}://{self._address} before {self._upstream}", flush=True)
                elif self._renew(folder):
                    nginx.send_signal(signal.SIGHUP)
        finally:
            if nginx.poll() is None:
                nginx.terminate()
                nginx.wait()

    def _renew(self, folder: Path) -> bool:
        """Whether something changed that nginx was told; what cannot be read leaves things as they are."""
        try:
            files, linked = self._read()
        except ProxyError as error:
            if str(error) != self._complaint:
                print(f"error: {error}; what was known before stays in force", file=sys.stderr, flush=True)
            self._complaint = str(error)
            return False
        self._complaint = ""
        if (files, linked) == self._told:
            return False
        self._write(files, linked, folder)
        return True

    def _read(self) -> tuple[dict[str, str], list[bytes]]:
        """The files for nginx, and what lies behind the links beside them."""
        try:
            tokens = nginx_files.read_tokens(self._tokens)
            linked = [target.read_bytes() for target in self._links.values()]
        except OSError as error:
            raise ProxyError(f"{error.filename} cannot be read ({error.strerror})") from None
        listen = nginx_files.listen(self._address, self._has_tls, self._inside)
        return {"listen.conf": listen, **self._upstream.files(tokens)}, linked

    def _write(self, files: dict[str, str], linked: list[bytes], folder: Path) -> None:
        for name, text in files.items():
            half = folder / f"{name}.half"
            half.write_text(text)
            half.replace(folder / name)
        self._told = files, linked

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """Signals are put on a list for the time of the block."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signs.append(number)

        # What nohup ignores stays ignored.
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        before = {sign: signal.signal(sign, note) for sign in wanted if signal.getsignal(sign) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)


def _end_with_parent() -> None:
    """Nginx must not outlive what takes revoked tokens from it: it is asked to end when this program is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _relay(lines: Iterable[bytes]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # the reader has gone; nginx must not wait for it
            sys.stdout.buffer.write(line)
            sys.stdout.flush()


def _listens(address: Address) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, address.port)) == 0


def _of_make_start() -> tuple[Address, Path]:
    """The server that `make start` runs, or will."""
    server = running_in(_RUN_DIR)
    return Address("127.0.0.1", server.port if server else 8080), _RUN_DIR / "key_file.json"


def _server(text: str) -> tuple[Address, Path]:
    address, _, key_file = text.partition("=")
    if not key_file:
        raise ProxyError(f"--t2i and --i2v must be ADDRESS=KEY_FILE, like {_EXAMPLE}; got {text!r}")
    return Address.parse(address), Path(key_file).absolute()


def _public_authorities() -> Path:
    import certifi

    return Path(certifi.where())


def _proxy(options: argparse.Namespace) -> Proxy:
    """The proxy that the command line means.

    Raises:
        ProxyError: it cannot be like that.
    """
    address = Address.parse(options.listen)
    inside = Address.parse(options.inside) if options.inside else None
    own = {stage: text for stage in STAGES if (text := getattr(options, stage))}
    if not options.tokens:
        raise ProxyError(
            "whose requests to take must be said: --tokens FILE, or CLOUDVID_TOKENS_FILE, one token a line"
        )
    tls = (options.cert, options.key) if options.cert and options.key else None
    if bool(options.cert) != bool(options.key):
        raise ProxyError("--cert and --key go together")
    upstream: OwnServers | Hosts
    authority = None
    if options.host:
        if own or inside:
            raise ProxyError("--host goes without --t2i, --i2v and --inside, which are for a host's own proxy")
        authority = options.ca or _public_authorities()
        upstream = Hosts(options.host, authority, options.host_name, options.tokens)
        if upstream.scheme == "http" and not (options.insecure_http or all(a.is_loopback for a in upstream.addresses)):
            raise ProxyError("--host http:// would send tokens and pictures in the clear; https://, or --insecure-http")
    else:
        servers = {stage: _server(text) for stage, text in own.items()} or dict.fromkeys(STAGES, _of_make_start())
        upstream = OwnServers(servers, inside)
        for mine in (address, inside):
            for taken, _ in servers.values():
                if mine and mine.port in range(taken.port, taken.port + PORTS) and not mine.is_loopback:
                    raise ProxyError(
                        f"{mine}: TorchServe has the ports {taken.port} to {taken.port + PORTS - 1}; choose another"
                    )
    if inside and inside.port == address.port:
        raise ProxyError("--inside must have a port of its own")
    if not (tls or address.is_loopback or options.insecure_http):
        raise ProxyError(
            f"--listen {address} would take tokens and pictures in the clear: give --cert and --key, or, where what is"
            " before it speaks TLS, --insecure-http"
        )
    return Proxy(address, options.tokens, upstream, tls=tls, authority=authority, inside=inside)


def main() -> int:
    """Run the proxy that the command line means; the exit code."""
    tokens = os.environ.get("CLOUDVID_TOKENS_FILE")
    parser = argparse.ArgumentParser(
        description="Run nginx before the model servers of this host, or of several.",
        epilog="Without --t2i, --i2v and --host it stands before the server of `make start`.",
    )
    parser.add_argument("--listen", default="127.0.0.1:8443", metavar="ADDRESS", help="default 127.0.0.1:8443")
    parser.add_argument(
        "--tokens",
        type=Path,
        default=Path(tokens) if tokens else None,
        metavar="FILE",
        help="the callers' tokens, one a line (CLOUDVID_TOKENS_FILE)",
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="certificate for TLS, with those that vouch for it")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the certificate's key")
    parser.add_argument(
        "--insecure-http", action="store_true", help="plain HTTP beyond this host: what is before or between speaks TLS"
    )
    for stage in STAGES:
        parser.add_argument(f"--{stage}", metavar="ADDRESS=KEY_FILE", help="TorchServe of this stage, on loopback")
    parser.add_argument("--inside", metavar="ADDRESS", help="/ready, /live and /metrics without a token, plain HTTP")
    parser.add_argument("--host", action="append", metavar="URL", help="the proxy of another host (repeatable)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="who vouches for the hosts; default: the public ones")
    parser.add_argument("--host-name", default="cloudvid", metavar="NAME", help="in the hosts' certificates (cloudvid)")
    try:
        return _proxy(parser.parse_args()).run()
    except ProxyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
