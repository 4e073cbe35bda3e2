"""The part of the Hugging Face Hub's protocol that fetching a model needs, on loopback."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from support.loopback import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves repositories from folders.

    Args:
        repositories: folder of each by its id.
        refused: status and `X-Error-Code` for ids that are refused.
        cut: path of a file that breaks off in the middle, `cut_times` times.
    """

    daemon_threads = True

    def __init__(self, repositories, refused=None, cut=None, cut_times=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.refused = repositories, refused or {}
        self.cut, self.cut_times = cut, cut_times
        self.fetched: list[str] = []
        self.ranges: list[str] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/"))
        name, _, rest = path[1:].partition("/resolve/")
        if name not in self.server.repositories:
            return self._send(404, b"{}")
        return self._file(name, rest.partition("/")[2])

    do_HEAD = do_GET  # noqa: N815

    def _api(self, path):
        name = "/".join(path.split("/")[:2])
        if name in self.server.refused:
            status, code = self.server.refused[name]
            return self._send(status, b"{}", {"X-Error-Code": code} if code else {})
        folder = self.server.repositories.get(name)
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        revision = path.split("/revision/")[1] if "/revision/" in path else "main"
        if revision not in ("main", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": _etag(f)}
                for n, f in zip(names, files, strict=True)
            ]
            return self._send(200, json.dumps(tree).encode())
        model = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in names], "private": False}
        return self._send(200, json.dumps(model).encode())

    def _file(self, name, path):
        file = Path(self.server.repositories[name]) / path
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.server.fetched.append(path)
        asked = self.headers.get("Range")
        if asked and self.command == "GET":
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], headers)
        cut = None
        if self.command == "GET" and path == self.server.cut and self.server.cut_times > 0:
            self.server.cut_times -= 1
            cut = len(data) // 2
        return self._send(200, data, headers, cut)

    def _send(self, status, body, headers=None, cut=None):
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
            self.connection.shutdown(2)

    def log_message(self, *_):
        """Silent."""


def _etag(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


def fake_hub(repositories, **options):
    return serving(FakeHub(repositories, **options))
