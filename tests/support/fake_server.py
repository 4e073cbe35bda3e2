"""A server that speaks TorchServe's protocol with answers made beforehand: for faults that a real one rarely has."""

import base64
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.loopback import serving

PICTURE = b"the picture"


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


def file_answer(data: bytes = PICTURE, **changes) -> Answer:
    """A file with the headers that describe it; `headers` replaces some of them, and None removes one."""
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    headers = {
        "Content-Type": "image/png",
        "CloudVid-Seed": "7",
        "CloudVid-Model": "m@1",
        "Content-Digest": f"sha-256=:{digest}:",
        "Server-Timing": "denoise;dur=12.5, decode;dur=3.0",
    }
    headers = {**headers, **changes.pop("headers", {})}
    return Answer(body=data, headers={name: value for name, value in headers.items() if value is not None}, **changes)


def workers(*states: str) -> Answer:
    """A stage whose workers are in these states."""
    return Answer(body=json.dumps([{"workers": [{"status": state} for state in states]}]).encode())


def named_events(data: bytes = PICTURE) -> dict[str, dict]:
    """An event of each kind that a stream has, by name."""
    file = {"media_type": "image/png", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    made = {"seed": 7, "model": "m@1", "timings": {}, "recipe": {}, "data": base64.b64encode(data).decode()}
    return {
        "started": {"event": "started", "stage": "t2i", "seed": 7, "model": "m@1"},
        "progress": {"event": "progress", "phase": "denoise", "step": 1, "steps": 2},
        "result": {"event": "result"} | file | made,
    }


def event_lines(*events: str | dict, data: bytes = PICTURE) -> Answer:
    """A stream of events: those that are named, and others as they are given."""
    named = named_events(data)
    lines = [json.dumps(named[event] if isinstance(event, str) else event) for event in events]
    return Answer(
        body="".join(line + "\n" for line in lines).encode(), headers={"Content-Type": "application/x-ndjson"}
    )


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
    disable_nagle_algorithm = True  # headers and body are two packets
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

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        """Silent."""


def fake_server(answer: Callable[[Seen], Answer], keep: bool = True) -> AbstractContextManager[FakeServer]:
    return serving(FakeServer(answer, keep))
