"""Beside a TorchServe, on loopback: what its own APIs do not tell, and keys that do not expire.

`GET /ready?stage=t2i`  200 if that stage has a READY worker (without `stage`: if every stage has), else 503
`GET /live`             503 once TorchServe has given up workers or has not answered for a minute, else 200
`GET /metrics`          queue and workers of each stage for Prometheus, followed by TorchServe's own metrics
`/jobs`, `/description`  requests that wait or run, and how fast: see `deploy/jobs.py`

`python -m deploy.exporter --port 8080 --stage t2i --stage i2v -- torchserve ...` becomes the command after `--`; the
exporter is its child, in its process group, and ends with it.
"""

import argparse
import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cloudvid_schema.ports import EXPORTER, MANAGEMENT, METRICS
from cloudvid_schema.processes import end_with
from cloudvid_serving.job_files import JobFiles
from cloudvid_serving.worker_starts import WorkerStarts
from deploy.renewal import Renewal, current, get

GRACE_SECONDS = 60.0
_RENEW_SECONDS = 20.0

Answer = tuple[int, str, bytes]
"""Status, media type, body."""


class Exporter:
    """Answers from TorchServe's state at the moment of asking; `port` is TorchServe's first."""

    def __init__(
        self, port: int, stages: Sequence[str], key_file: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._port, self._stages, self._key_file, self._clock = port, tuple(stages), key_file, clock
        self._ill_since: float | None = None
        self._lock = threading.Lock()

    def answer(self, method: str, target: str, authorization: str = "") -> Answer:
        """What a request of this method, path and query gets, with its Authorization."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        asked = query.get("stage", [])
        if unknown := [stage for stage in asked if stage not in self._stages]:
            return _error(404, "ModelNotFoundException", f"stage: must be one of {self._stages}, got {unknown[0]!r}")
        if f"{parts.path}/".startswith(("/jobs/", "/description/")):
            return self._of_jobs(method, parts.path, query, authorization)
        routes = {"/ready": lambda: self._ready(asked or self._stages), "/live": self._live, "/metrics": self._metrics}
        if parts.path not in routes:
            return _error(404, "ResourceNotFoundException", f"there are {', '.join(routes)}, /jobs and /description")
        if method != "GET":
            return _error(405, "MethodNotAllowed", "the method must be GET")
        return routes[parts.path]()

    def _of_jobs(self, method: str, path: str, query: dict[str, list[str]], authorization: str) -> Answer:
        from deploy.jobs import JobError, Jobs  # in the child: TorchServe starts meanwhile

        keys = current(self._key_file)
        jobs = Jobs(self._stages, keys.inference if keys else "", self._state)
        try:
            return _json(*jobs.answer(method, path, query, authorization))
        except JobError as error:
            return _error(*error.args)
        except OSError as error:
            return _error(507, "InsufficientStorage", f"this cannot be noted: {error.strerror}")

    def _ready(self, stages: Sequence[str]) -> Answer:
        states = {stage: self._state(stage) for stage in stages}
        if missing := [stage for stage, state in states.items() if not _is_ready(state)]:
            text = f"{' and '.join(missing)} {'have' if len(missing) > 1 else 'has'} no worker that is ready"
            return _error(503, "ServiceUnavailableException", text, stages=states)
        return _json(200, {"stages": states})

    def _live(self) -> Answer:
        keys = current(self._key_file)
        status, _ = get(self._port, "/ping", keys.inference if keys else None)
        states = [self._state(stage) for stage in self._stages] if status == 500 else []
        with self._lock:
            # A refused key is an answer too. 500: fewer workers are left than were asked for, perhaps of a stage that
            # still has some: those are not to be killed for one that was given up.
            if status and all(map(_is_ready, states)):
                self._ill_since = None
                return _json(200, {"status": "alive"})
            now = self._clock()
            self._ill_since = now if self._ill_since is None else self._ill_since
            for_seconds = now - self._ill_since
        what = "has given workers up" if status else "does not answer"
        if for_seconds < GRACE_SECONDS:
            return _json(200, {"status": f"TorchServe {what}, for {for_seconds:.0f} s"})
        return _error(503, "ServiceUnavailableException", f"TorchServe {what}, for {for_seconds:.0f} s: restart it")

    def _metrics(self) -> Answer:
        pending, workers, restarts = [], [], []
        for stage in self._stages:
            if state := self._state(stage):
                pending.append(f'cloudvid_pending_requests{{stage="{stage}"}} {state["pending_requests"]}')
                count = state.get("restarts", {"count": 0})["count"]
                restarts.append(f'cloudvid_worker_restarts_total{{stage="{stage}"}} {count}')
                for status, count in state["workers"].items():
                    workers.append(f'cloudvid_workers{{stage="{stage}",status="{status}"}} {count}')
        lines = [
            "# HELP cloudvid_pending_requests Requests that wait for a worker.",
            "# TYPE cloudvid_pending_requests gauge",
            *pending,
            "# HELP cloudvid_workers Worker processes by TorchServe's status.",
            "# TYPE cloudvid_workers gauge",
            *workers,
            "# HELP cloudvid_worker_restarts_total Workers that were started again because they had died.",
            "# TYPE cloudvid_worker_restarts_total counter",
            *restarts,
            "",
        ]
        code, own = get(self._port + METRICS, "/metrics")
        text = "\n".join(lines).encode() + (own if code == 200 else b"")
        return 200, "text/plain; version=0.0.4; charset=utf-8", text

    def _state(self, stage: str) -> dict[str, Any] | None:
        """A stage's workers by TorchServe's statuses, its queue, and restarts of workers if there were any; None if
        TorchServe does not tell them.

        The statuses are READY, and UNLOADING for a worker that starts or has died.
        """
        from cloudvid.server.state import read_status  # in the child: TorchServe starts meanwhile
        from cloudvid_schema.protocol import Stage

        keys = current(self._key_file)
        status, body = get(self._port + MANAGEMENT, f"/models/{stage}", keys.management if keys else None)
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            if status == 200:
                seen = read_status(Stage(stage), "", {"jobQueueStatus": None, **json.loads(body)[0]})
                workers = Counter({"READY": 0, "UNLOADING": 0})
                workers.update(worker.reported for worker in seen.workers)
                restarts = WorkerStarts().restarts(stage)
                more = {"restarts": restarts} if restarts["count"] else {}
                return {"workers": workers, "pending_requests": seen.queue, **more}
        return None


def _is_ready(state: dict[str, Any] | None) -> bool:
    return state is not None and state["workers"]["READY"] > 0


def _json(status: int, content: dict[str, object]) -> Answer:
    return status, "application/json", json.dumps(content).encode()


def _error(code: int, kind: str, message: str, **more: object) -> Answer:
    return _json(code, {"code": code, "type": kind, "message": message, **more})


class Http(ThreadingHTTPServer):
    """The exporter's port on loopback."""

    request_queue_size = 64

    def __init__(self, port: int, exporter: Exporter) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.exporter = exporter


class _Handler(BaseHTTPRequestHandler):
    server: Http
    timeout = 30  # s for a request to arrive

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization", "")
        status, media_type, body = self.server.exporter.answer(self.command, self.path, authorization)
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Silent: it is asked every few seconds."""


def main() -> None:
    """Become the command, with the exporter as a child."""
    parser = argparse.ArgumentParser(description="Run a command, TorchServe, with an exporter beside it.")
    parser.add_argument("--port", type=int, required=True, help="TorchServe's first; the exporter's is five above")
    parser.add_argument("--stage", action="append", required=True)
    parser.add_argument("--key-file", type=Path, default=Path("key_file.json"))
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    server = Http(options.port + EXPORTER, Exporter(options.port, options.stage, options.key_file))
    for earlier in (WorkerStarts(), JobFiles()):
        earlier.clear()
    parent = os.getpid()
    os.environ.pop("PYTHONPATH", None)  # it would take precedence over what is in the archives
    if os.fork():
        server.socket.close()
        os.execvp(options.command[0], options.command)  # noqa: S606
    end_with(parent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    renewal = Renewal(options.port + MANAGEMENT, options.key_file)
    while True:
        time.sleep(_RENEW_SECONDS)
        renewal.renew()


if __name__ == "__main__":
    main()
