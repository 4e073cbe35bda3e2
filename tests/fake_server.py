"""A server that speaks TorchServe's protocol with answers made beforehand: for faults that a real one rarely has."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """One HTTP answer; `cut` closes the connection after that many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def error(status: int, kind: str, message: str = "") -> Answer:
    """An error as TorchServe words it."""
    body = json.dumps({"code": status, "type": kind, "message": message}).encode()
    return Answer(status, body, {"Content-Type": "application/json"})


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[Seen], Answer], keep: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.keep = answer, keep
        self.seen: list[Seen] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = Seen(self.command, self.path, dict(self.headers), body)
        if self.server.keep:
            self.server.seen.append(seen)
        answer = self.server.answer(seen)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        """Silent."""


@contextmanager
def fake_server(answer: Callable[[Seen], Answer], keep: bool = True) -> Iterator[FakeServer]:
    server = FakeServer(answer, keep)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
