"""Speaks TorchServe's protocol and answers at once, with files made beforehand: `python instant_server.py SIDE`.

It says its port on its first line, then serves until standard input ends. Both files are made by the product's encoders
from noise, the picture SIDE×SIDE, the clip of eight such frames.
"""

import hashlib
import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "client"), str(ROOT / "handlers")]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from cloudvid_schema.protocol import MEDIA_TYPE, NDJSON, Progress, Result, Stage, Started  # noqa: E402
from cloudvid_stages.media import mp4_bytes, png_bytes  # noqa: E402

_MODEL = "instant@0"
_READY = json.dumps([{"workers": [{"id": "9000", "status": "READY"}] * 2}]).encode()


def stream(stage: Stage, data: bytes) -> bytes:
    """The event stream that ends in a file."""
    result = Result(
        media_type=MEDIA_TYPE[stage],
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seed=7,
        model=_MODEL,
        timings={"denoise": 1.0},
        recipe={},
        data=data,
    )
    steps = [Progress(phase="denoise", step=step, steps=5) for step in range(1, 6)]
    events = [Started(stage=stage, seed=7, model=_MODEL), *steps, result]
    return b"".join(event.model_dump_json().encode() + b"\n" for event in events)


class Handler(BaseHTTPRequestHandler):
    """Answers whatever it is asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets
    answers: dict[str, bytes]

    def do_GET(self) -> None:
        """Workers that are ready; a description there is none."""
        self._send(_READY if "/models/" in self.path and "customized" not in self.path else b"{}", "application/json")

    def do_POST(self) -> None:
        """A file, at once."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self.answers[self.path.rpartition("/")[2]], NDJSON)

    def _send(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def main() -> None:
    """Make the files and serve them."""
    side = int(sys.argv[1])
    noise = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    files = {Stage.T2I: png_bytes(Image.fromarray(noise[0]), None), Stage.I2V: mp4_bytes(noise, 6, None)}
    Handler.answers = {str(stage): stream(stage, data) for stage, data in files.items()}
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(
            json.dumps({"port": server.server_address[1], "bytes": [len(data) for data in files.values()]}), flush=True
        )
        sys.stdin.read()


if __name__ == "__main__":
    main()
