"""The proxy as an operator starts it, with a file of tokens, a certificate, and stand-ins for TorchServe."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests

from cloudvid_schema.protocol import ErrorBody
from support import ROOT
from support.loopback import free_port, serving

TOKEN = "a-callers-token.of+its/own~1"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
needs_nginx = pytest.mark.skipif(
    NGINX is None and not os.environ.get("CI"), reason="no nginx here (apt-get install nginx-light); CI installs one"
)


@dataclass
class Running:
    """A proxy, and what it printed so far."""

    url: str
    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def await_line(self, part: str, count: int = 1) -> None:
        """Return once so many lines hold this text."""
        with self.changed:
            assert self.changed.wait_for(lambda: sum(part in line for line in self.lines) >= count, 60), self.lines


def tokens_file(folder: Path, *tokens: str) -> Path:
    path = folder / "tokens"
    path.write_text("\n".join(["# callers", "", *(tokens or (TOKEN,)), ""]))
    return path


def key_file(folder: Path, key: str = "inference-key") -> Path:
    """As TorchServe writes it."""
    entry = {"key": key, "expiration time": "2099-01-01T00:00:00.123456789Z"}
    path = folder / "key_file.json"
    path.write_text(
        json.dumps({"management": entry | {"key": "management-key"}, "inference": entry, "API": {"key": "a"}})
    )
    return path


def certificate(folder: Path, name: str = "cloudvid") -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName=DNS:{name},IP:127.0.0.1",
            "-keyout",
            str(files[1]),
            "-out",
            str(files[0]),
        ],
        check=True,
        capture_output=True,
    )
    return files


def before(url: str, keys: Path, listen: int) -> list[str]:
    """Arguments of a proxy before one server for both stages."""
    own = f"{url.removeprefix('http://')}={keys}"
    return ["--listen", f"127.0.0.1:{listen}", "--t2i", own, "--i2v", own]


@contextmanager
def proxy(tokens: Path, *arguments: str, prefix: tuple[str, ...] = (), folder: Path = ROOT) -> Iterator[Running]:
    """A proxy of the checkout in this folder, once it listens; it is interrupted at the end of the block."""
    command = [*prefix, sys.executable, "-m", "deploy.proxy", "--tokens", str(tokens), *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",  # nginx logs what it was sent; were this thread to end, nginx would soon wait for a reader
    )
    running = Running("", process)

    def read() -> None:
        for line in process.stdout:
            with running.changed:
                running.lines.append(line)
                running.changed.notify_all()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        running.await_line("proxy on http")
        running.url = next(line for line in running.lines if line.startswith("proxy on ")).split()[2]
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        reader.join(timeout=30)
        process.stdout.close()


class _Stub(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that went away is no news here."""


@contextmanager
def stub(answer: Callable[[BaseHTTPRequestHandler, bytes], None], port: int = 0) -> Iterator[str]:
    """A server that hands each request, its body read, to a function; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_):
            """Silent."""

    with serving(_Stub(("127.0.0.1", port), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", kind: str = "application/json") -> None:
    """A whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def two_parts(folder: Path) -> Iterator[tuple[Running, Iterator[bytes], threading.Event]]:
    """A proxy before a stand-in that streams `first`, and `second` once the event is set; the lines that come through."""
    go_on = threading.Event()

    def answer(handler, body):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"6\r\nfirst\n\r\n")
        assert go_on.wait(timeout=60)
        handler.wfile.write(b"7\r\nsecond\n\r\n0\r\n\r\n")

    with (
        stub(answer) as url,
        proxy(tokens_file(folder), *before(url, key_file(folder), free_port())) as running,
        requests.post(
            running.url + "/predictions/t2i", headers=BEARER, data=b"{}", stream=True, timeout=60
        ) as response,
    ):
        yield running, response.iter_lines(chunk_size=1), go_on


def listens(url):
    host, port = url.rpartition("/")[2].split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def folder_of(running):
    """Where nginx's files lie: it says so on its command line."""
    (nginx,) = psutil.Process(running.process.pid).children()
    return Path(re.search(r"-p (\S+)/ ", " ".join(nginx.cmdline()))[1])


def error_of(answer):
    assert answer.headers["Content-Type"] == "application/json"
    body = ErrorBody.model_validate_json(answer.content)
    assert body.code == answer.status_code
    return body


@contextmanager
def recorder(folder: Path, *arguments: str) -> Iterator[tuple[Running, list]]:
    """A proxy before a stand-in that answers everything, and the requests that reached it."""
    seen = []

    def answer(handler, body):
        seen.append((handler.command, handler.path, dict(handler.headers), body))
        reply(handler, 200)

    with (
        stub(answer) as url,
        proxy(tokens_file(folder), *before(url, key_file(folder), free_port()), *arguments) as running,
    ):
        yield running, seen
