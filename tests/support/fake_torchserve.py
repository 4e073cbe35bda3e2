"""TorchServe's protocol around the real handler, with stages that take no time: for kills, faults and many requests.

Requests go through `StageHandler` as in a worker: rows, headers, events and error bodies are the real ones.
"""

import gc
import json
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ts
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from cloudvid_schema.protocol import Stage
from stage_handler import StageHandler
from support.fake_server import Answer
from support.loopback import serving

_METRICS = str(Path(ts.__file__).parent / "configs/metrics.yaml")


class _PictureHandler(StageHandler):
    stage_class = "support.noise:Picture"


class _ClipHandler(StageHandler):
    stage_class = "support.noise:Clip"


class _Worker:
    """A handler in its context, as TorchServe's worker process holds it."""

    def __init__(self, stage: Stage, identity: str, step_seconds: float, warnings=()) -> None:
        self.handler = _PictureHandler() if stage is Stage.T2I else _ClipHandler()
        section = {"handler": {"identity": identity, "step_seconds": step_seconds, "warnings": warnings}}
        self.context = Context(str(stage), ".", {}, 1, None, "0.12.0", True, MetricsCacheYamlImpl(_METRICS), section)
        self.handler.initialize(self.context)
        gc.unfreeze()  # this process is not a worker's, and has much to throw away

    def answer(self, row: dict[str, bytes], headers: dict[str, str], send: Callable[[bytes], None]):
        """Status, headers and last part of the answer; parts before it are sent as they come."""
        processor = RequestProcessor(headers)
        self.context.request_ids, self.context.request_processor = {0: "id"}, [processor]
        self.context.cl_socket = _Frames(send)
        (last,) = self.handler.handle([row], self.context)
        return processor.get_response_status_code(), processor.get_response_headers(), last


class _Frames:
    """Takes the frames that TorchServe's worker sends to its server, and passes each one's body on."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def sendall(self, frame: bytes) -> None:
        at = 4  # the code

        def text() -> bytes:
            nonlocal at
            (size,) = struct.unpack_from("!i", frame, at)
            at += 4 + size
            return frame[at - size : at]

        text(), text(), text()  # message, request id, content type
        at += 4  # status
        text()  # phrase
        (headers,) = struct.unpack_from("!i", frame, at)
        at += 4
        for _ in range(2 * headers):
            text()
        self._send(text())


class FakeTorchServe(ThreadingHTTPServer):
    """Both endpoints and the management API on one port.

    Args:
        workers: of each stage.
        step_seconds: how long a step takes.
        fault: asked before each POST; an answer replaces the stage's own.
        warnings: of each picture.
        cut: asked before each POST; how many bytes of the answer's body to send before the connection is cut.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, workers=1, step_seconds=0.0, fault=None, cut=None, identities=None, warnings=(), host="127.0.0.1", port=0
    ):
        super().__init__((host, port), _Http)
        names = identities or {stage: f"noise-{stage}@1" for stage in Stage}
        self.workers = dict.fromkeys(Stage, workers)
        self.states, self.health = dict.fromkeys(Stage, "READY"), 200
        """What the management API says of each stage's workers (one text for all, or one each), and /ping's status."""
        self.free = {stage: threading.Semaphore(workers) for stage in Stage}
        self.pool = {
            stage: [_Worker(stage, names[stage], step_seconds, warnings) for _ in range(workers)] for stage in Stage
        }
        self.fault, self.cut = fault or (lambda stage, body: None), cut or (lambda stage: None)
        self.posts: Counter[Stage] = Counter()
        self.running: Counter[Stage] = Counter()
        self.most_running = 0
        """How many requests were in the server's hands at once, at most, of one stage."""
        self.overlapped = False
        """Whether both stages were at work at one moment."""
        self.lock = threading.RLock()
        self.arrived = threading.Condition(self.lock)

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server_address)

    def await_post(self, count, is_alive):
        """Return once so many POSTs were made, or the client is no longer alive."""
        with self.arrived:
            while self.posts.total() < count and is_alive():
                self.arrived.wait(timeout=0.05)

    def handle_error(self, request, client_address):
        """A client that went away is no news here."""


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeTorchServe

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1].partition("?")[0]
        if name == "ping":
            self._send(self.server.health, {}, b"{}")
        elif self.path.startswith("/models/"):
            stage = Stage(name)
            states = self.server.states[stage]
            each = [states] * self.server.workers[stage] if isinstance(states, str) else states
            model: dict[str, Any] = {"workers": [{"status": state} for state in each]}
            if self.path.endswith("customized=true"):
                _, _, text = self.server.pool[stage][0].answer({}, {"describe": "True"}, lambda part: None)
                model["customizedMetadata"] = json.loads(text)
            self._send(200, {}, json.dumps([model]).encode())
        else:
            self._send(404, {}, b"{}")

    def do_POST(self):
        stage = Stage(self.path.rsplit("/", 1)[-1])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            server.posts[stage] += 1
            server.arrived.notify_all()
            server.running[stage] += 1
            server.most_running = max(server.most_running, server.running[stage])
            server.overlapped = server.overlapped or all(server.running[each] for each in Stage)
        try:
            fault: Answer | None = server.fault(stage, body)
            if fault is not None:
                self._send(fault.status, fault.headers, fault.body, fault.cut)
                return
            with server.free[stage]:
                worker = server.pool[stage].pop()
                try:
                    self._serve(worker, stage, body)
                finally:
                    server.pool[stage].append(worker)
        finally:
            with server.lock:
                server.running[stage] -= 1

    def _serve(self, worker: _Worker, stage: Stage, body: bytes) -> None:
        left = self.server.cut(stage)
        parts: list[bytes] = []

        def send(part: bytes) -> None:
            nonlocal left
            if not parts:
                self.send_response(200)
                self.send_header("Content-Type", "application/x-ndjson")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
            parts.append(part)
            if left is not None:
                part, left = part[:left], left - len(part)
            if part:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if left is not None and left <= 0:
                self.close_connection = True
                self.connection.shutdown(2)
                raise ConnectionAbortedError

        status, headers, last = worker.answer(_row(self.headers, body), dict(self.headers), send)
        if parts:
            send(last)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send(status, headers, last, left)

    def _send(self, status, headers, body, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        """Silent."""


def _row(headers: Mapping[str, str], body: bytes) -> dict[str, bytes]:
    """What TorchServe makes of a body: a form's parts by name, anything else as `body`."""
    kind = headers["Content-Type"]
    if not kind.startswith("multipart/"):
        return {"body": body}
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    row = {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        row[head.split(b'name="')[1].split(b'"')[0].decode()] = content[:-2]
    return row


def fake_torchserve(within=lambda function: function(), **options):
    """A server that serves; `within` may open its socket elsewhere, as in a network namespace."""
    return serving(within(lambda: FakeTorchServe(**options)))
