"""Runs nginx in front of the model servers: TLS, tokens, limits, and the routes that callers need.

In front of a host's own TorchServe, or its two, one a stage (ADDRESS=KEY_FILE, as `deploy/server.py` started them;
without `--t2i` and `--i2v` it is the one of `make start`):

    proxy.py --tokens FILE --listen 0.0.0.0:8443 --cert CERT --key KEY --t2i 127.0.0.1:8080=.run/key_file.json ...

In front of the proxies of several hosts; each request goes to the host that has the fewest:

    proxy.py --tokens FILE --listen 0.0.0.0:443 --cert CERT --key KEY --host https://10.0.0.1:8443 --host ... --ca CA

The callers' tokens are in a file, one per line. A change of that file, of a certificate, or of TorchServe's keys (each
start makes new ones) takes effect at once. SIGTERM lets running requests end; SIGINT or a second SIGTERM does not.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import certifi

from cloudvid_schema.files import write_file
from cloudvid_schema.ports import PORTS
from deploy import ROOT, STAGES, DeployError, nginx_files
from deploy.nginx_files import Address
from deploy.torchserve import RUN_DIR, running_in, signals_kept
from deploy.upstreams import Hosts, OwnServers

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_PREFIX = "cloudvid-nginx-"
_SECONDS = 0.2  # between two looks at the files


@dataclass
class Proxy:
    """One nginx in the foreground, in a folder that goes with it."""

    address: Address
    tokens: Path
    """File of the callers' tokens."""
    upstream: OwnServers | Hosts
    links: Mapping[str, Path]
    """Files of certificates and keys, by their names in nginx's folder; without key.pem it speaks plain HTTP."""
    inside: Address | None = None
    """A second address, only for the cluster itself."""
    _told: tuple[dict[str, str], list[bytes]] | None = None
    _complaint: str = ""

    def run(self) -> int:
        """Run until a signal or nginx itself ends it; the exit code.

        Raises:
            DeployError: a file cannot be read, or there is no nginx.
        """
        binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if not binary:
            raise DeployError("no nginx here; `apt-get install nginx-light`, or the like of another system, brings one")
        if _listens(self.address):
            raise DeployError(f"{self.address}: another program listens there already")
        os.umask(0o077)  # the files hold tokens and keys
        _sweep()
        folder, lock = _new_folder()
        try:
            shutil.copy(ROOT / "deploy/nginx.conf", folder)
            for name, target in self.links.items():
                (folder / name).symlink_to(target.absolute())
            if isinstance(self.upstream, Hosts):
                self.upstream.watch()
            self._write(folder)
            command = [binary, "-e", "stderr", "-p", f"{folder}/", "-c", str(folder / "nginx.conf")]
            # It reopens its standard output by name, which only works with a pipe.
            with (
                signals_kept() as signals,
                subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_end_with_parent) as nginx,  # noqa: PLW1509
            ):
                relay = threading.Thread(target=_relay, args=(nginx.stdout,))
                relay.start()
                code = self._watch(nginx, folder, signals)
                relay.join()
                return code
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def _watch(self, nginx: subprocess.Popen[bytes], folder: Path, signals: list[int]) -> int:
        is_announced = is_ending = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = nginx.wait(timeout=_SECONDS)
                    return 0 if is_ending else code or 1
                while signals:
                    is_gentle = signals.pop(0) == signal.SIGTERM and not is_ending
                    nginx.send_signal(signal.SIGQUIT if is_gentle else signal.SIGTERM)
                    is_ending = True
                if is_ending:
                    continue
                if not is_announced:  # until it listens, a signal would end it
                    if is_announced := _listens(self.address):
                        scheme = "https" if "key.pem" in self.links else "http"
                        print(f"proxy on {scheme}://{self.address} before {self.upstream}", flush=True)
                elif self._renew(folder):
                    nginx.send_signal(signal.SIGHUP)
        finally:
            nginx.terminate()
            nginx.wait()

    def _renew(self, folder: Path) -> bool:
        """Whether something changed that nginx was told; what cannot be read leaves things as they are."""
        try:
            has_changed, complaint = self._write(folder), ""
        except DeployError as error:
            has_changed, complaint = False, str(error)
            if complaint != self._complaint:
                print(f"error: {complaint}; what was known before stays in force", file=sys.stderr, flush=True)
        self._complaint = complaint
        return has_changed

    def _write(self, folder: Path) -> bool:
        """Write the files for nginx; False if neither they nor what lies behind the links has changed.

        Raises:
            DeployError: a file cannot be read.
        """
        try:
            tokens = nginx_files.read_tokens(self.tokens)
            linked = [target.read_bytes() for target in self.links.values()]
        except OSError as error:
            raise DeployError(f"{error.filename} cannot be read ({error.strerror})") from None
        listen = {"address": self.address, "tls": "key.pem" in self.links, "inside": self.inside}
        values = {"tokens": tokens, **listen, **self.upstream.values()}
        files = {name: template.render(values) for name, template in nginx_files.TEMPLATES.items()}
        if (files, linked) == self._told:
            return False
        for name, text in files.items():
            write_file(folder / name, text.encode())
        self._told = files, linked
        return True


def _new_folder() -> tuple[Path, int]:
    """A folder, and a lock on it that lasts until this program ends, however it does."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):  # another proxy has just swept it
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Started by root, its processes run as nobody, and keep large bodies in folders of their own in there.
            folder.chmod(0o711)
            return folder, lock


def _sweep() -> None:
    """Remove the folders of this user's proxies that were killed: they hold tokens and keys."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or that of a proxy that runs
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


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


def _server(text: str) -> tuple[Address, Path] | None:
    if not text:
        return None
    address, _, key_file = text.partition("=")
    if not key_file:
        example = "127.0.0.1:8080=.run/key_file.json"
        raise DeployError(f"--t2i and --i2v must be ADDRESS=KEY_FILE, like {example}; got {text!r}")
    return Address.parse(address), Path(key_file).absolute()


def _proxy(options: argparse.Namespace) -> Proxy:
    """The proxy that the command line means.

    Raises:
        DeployError: it cannot be like that.
    """
    address, inside = options.listen, options.inside
    own = {stage: server for stage in STAGES if (server := getattr(options, stage))}
    if not options.tokens:
        raise DeployError("no callers' tokens: give --tokens FILE, or CLOUDVID_TOKENS_FILE, with one token a line")
    if bool(options.cert) != bool(options.key):
        raise DeployError("--cert and --key go together")
    links = {"certificate.pem": options.cert, "key.pem": options.key} if options.cert else {}
    upstream: OwnServers | Hosts
    if options.host:
        if own or inside:
            raise DeployError("--host goes without --t2i, --i2v and --inside, which are for a host's own proxy")
        links["ca.pem"] = options.ca or Path(certifi.where())
        upstream = Hosts(options.host, links["ca.pem"], options.host_name, options.tokens)
        is_private = upstream.scheme == "https" or all(host.is_loopback for host in upstream.addresses)
        if not (is_private or options.insecure_http):
            text = "--host http:// would send tokens and pictures in the clear; https://, or --insecure-http"
            raise DeployError(text)
    else:
        if not own:  # the server that `make start` runs, or will
            running = running_in(RUN_DIR)
            both = Address("127.0.0.1", running.port if running else 8080)
            own = dict.fromkeys(STAGES, (both, RUN_DIR / "key_file.json"))
        upstream = OwnServers(own)
        for (stage, (taken, _)), mine in product(own.items(), (address, inside)):
            if not taken.is_loopback:
                raise DeployError(f"--{stage}: TorchServe must be on this host's loopback, got {taken}")
            last = taken.port + PORTS - 1
            if mine and taken.port <= mine.port <= last and not mine.is_loopback:
                raise DeployError(f"{mine}: TorchServe has the ports {taken.port} to {last}; choose another")
    if inside and inside.port == address.port:
        raise DeployError("--inside must have a port of its own")
    if not (options.cert or address.is_loopback or options.insecure_http):
        raise DeployError(
            f"--listen {address} would take tokens and pictures in the clear: give --cert and --key, or, where what is"
            " before it speaks TLS, --insecure-http"
        )
    return Proxy(address, options.tokens, upstream, links, inside)


def main() -> int:
    """Run the proxy that the command line means; the exit code."""
    parser = argparse.ArgumentParser(
        description="Run nginx in front of the model servers of this host, or of several.",
        epilog="Without --t2i, --i2v and --host, nginx runs in front of the server that `make start` runs.",
    )
    add = parser.add_argument
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    default, tokens = "127.0.0.1:8443", os.environ.get("CLOUDVID_TOKENS_FILE") or None
    add("--listen", type=Address.parse, default=default, metavar="ADDRESS", help=f"default {default}")
    add("--tokens", **file, default=tokens, help="the callers' tokens, one per line (CLOUDVID_TOKENS_FILE)")
    add("--cert", **file, help="certificate for TLS, with its chain")
    add("--key", **file, help="the certificate's key")
    add(
        "--insecure-http",
        action="store_true",
        help="allow plain HTTP beyond this host: something in front handles TLS",
    )
    for stage in STAGES:
        add(f"--{stage}", type=_server, metavar="ADDRESS=KEY_FILE", help="TorchServe of this stage, on loopback")
    add(
        "--inside",
        type=lambda text: Address.parse(text) if text else None,
        metavar="ADDRESS",
        help="/ready, /live and /metrics without a token, plain HTTP",
    )
    add("--host", action="append", metavar="URL", help="the proxy of another host (repeatable)")
    add("--ca", **file, help="CA bundle that verifies the hosts' certificates (default: the public CAs)")
    add("--host-name", default="cloudvid", metavar="NAME", help="name in the hosts' certificates (default: cloudvid)")
    try:
        return _proxy(parser.parse_args()).run()
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
