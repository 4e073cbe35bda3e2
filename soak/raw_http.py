"""Z4: requests that are no HTTP, or nearly, byte by byte: through the proxy and at TorchServe's own port.

Whatever arrives, no worker may suffer, nothing behind the proxy may be reached that it does not let through, and the
next good request is answered.
"""

import contextlib
import json
import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from conftest import Running
from loopback import free_port
from picture_parts import encoded, noise
from proxies import NGINX, TOKEN, before, proxy, tokens_file

from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.report import Report, Round
from soak.servers import until

MUTANTS = 50
"""Of one round, half of them through the proxy."""
_SILENCE = 0.2  # seconds without a byte of the answer, after which the sender goes away
_GOOD_SECONDS = 60
_SECRET = b"/api-description"
"""A page that TorchServe shows to everybody and the proxy to nobody: whoever gets it through the proxy got past it."""
_REVEALS = b'"openapi"'
_PICTURE = encoded(noise(64, 64), "PNG")
# Both are refused by the stage itself, so that no mutant keeps a model busy.
_WRONG = json.dumps({"prompt": "a", "width": 3}).encode()
_FORM = (
    b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    + _PICTURE
    + b'\r\n--cut\r\nContent-Disposition: form-data; name="fps"\r\n\r\n0\r\n--cut--\r\n'
)
Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Door:
    """Where mutants are sent, with what opens it."""

    name: str
    host: str
    port: int
    key: str

    def head(self, line: bytes, *headers: bytes) -> bytes:
        """A request's head."""
        own = (b"Host: x", f"Authorization: Bearer {self.key}".encode())
        return b"\r\n".join((line + b" HTTP/1.1", *own, *headers, b"", b""))

    def good(self) -> list[bytes]:
        """Requests as they should be."""
        size = f"Content-Length: {len(_WRONG)}".encode()
        json_head = self.head(b"POST /predictions/t2i", b"Content-Type: application/json", size)
        form_size = f"Content-Length: {len(_FORM)}".encode()
        kind = b"Content-Type: multipart/form-data; boundary=cut"
        chunked = self.head(b"POST /predictions/t2i", b"Content-Type: application/json", b"Transfer-Encoding: chunked")
        return [
            self.head(b"GET /ping"),
            json_head + _WRONG,
            self.head(b"POST /predictions/i2v", kind, form_size) + _FORM,
            chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(_WRONG), _WRONG),
        ]


def _bytes(draw: random.Random, text: bytes) -> bytes:
    """A few bytes replaced, dropped or put in."""
    data = bytearray(text)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(data))
        change = draw.randrange(3)
        data[at : at + (change < 2)] = b"" if change == 0 else draw.choice((b"\0", b"\r", b"\n", b" ", b"\xff", b":"))
    return bytes(data)


def _cut(draw: random.Random, text: bytes) -> bytes:
    return text[: draw.randrange(len(text))]


def _line(draw: random.Random, text: bytes) -> bytes:
    """Another request line."""
    lines = (
        b"", b" ", b"GET", b"GET /ping", b"get /ping HTTP/1.1", b"GET /ping HTTP/9.9", b"GET  /ping  HTTP/1.1",
        b"GET\t/ping\tHTTP/1.1", b"\0GET /ping HTTP/1.1", b"CONNECT 127.0.0.1:8081 HTTP/1.1", b"TRACE / HTTP/1.1",
        b"GET http://127.0.0.1:8081/models HTTP/1.1", b"GET //ping HTTP/1.1", b"GET /../models HTTP/1.1",
        b"GET /%2e%2e/models HTTP/1.1", b"GET /ping%00 HTTP/1.1", b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        b"POST /predictions/t2i;x=1 HTTP/1.1", b"POST /predictions/t2i%2f..%2f HTTP/1.1", b"PRI * HTTP/2.0",
        b"POST /predictions/" + b"%ff" * 50 + b" HTTP/1.1", b"GET /predictions/../api-description HTTP/1.1",
        b"GET /ping HTTP/1.1\rX: y", b"GET /ping\nHTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )  # fmt: skip
    return draw.choice(lines) + text[text.index(b"\r\n") :]


def _header(draw: random.Random, text: bytes) -> bytes:
    """One more header, or very many, or one that is none."""
    headers = (
        b"X: " + b"a" * draw.choice((1000, 9000, 100_000)), b"X" * 20_000 + b": y", b": y", b"X", b" folded", b"X : y",
        b"X: \0", b"X: \xff\xfe", b"X: a\rInjected: b", b"Host: y", b"Authorization: Bearer x", b"Content-Length: 0",
        b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1, 1", b"Content-Length: +5",
        b"Content-Length: 0x10", b"Content-Length: 1e3", b"Expect: 100-continue", b"Expect: nonsense",
        b"Connection: upgrade\r\nUpgrade: h2c", b"Connection: close, Authorization", b"Content-Encoding: gzip",
        b"Content-Type: multipart/form-data", b"Accept: application/x-ndjson", b"Range: bytes=0-0,1-1",
        b"describe: True", b"X-Forwarded-For: 127.0.0.1", b"Trailer: Authorization", b"TE: trailers",
        b"\r\n".join(b"X%d: y" % number for number in range(3000)),
    )  # fmt: skip
    at = text.index(b"\r\n") + 2
    return text[:at] + draw.choice(headers) + b"\r\n" + text[at:]


def _chunks(draw: random.Random, text: bytes) -> bytes:
    """A chunked body whose chunks are wrong."""
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", text[: text.index(b"\r\n\r\n") + 4], count=1)
    bodies = (
        b"ffffffffffffffff\r\na\r\n0\r\n\r\n", b"-1\r\na\r\n0\r\n\r\n", b"\r\n\r\n", b"5\r\nab\r\n0\r\n\r\n",
        b"1\r\nabcdef\r\n0\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"5;" + b"e" * 50_000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"1\na\n0\n\n", b"0\r\nX: " + b"t" * 50_000 + b"\r\n\r\n", b"1\r\na\r\n" * 2000, b"5 \r\nabcde\r\n0\r\n\r\n",
        b"g\r\n", b"0\r\nContent-Length: 5\r\n\r\nGET /api-description HTTP/1.1\r\nHost: x\r\n\r\n",
    )  # fmt: skip
    return head + draw.choice(bodies)


def _smuggled(draw: random.Random, text: bytes) -> bytes:
    """Two lengths, or two kinds of length: one reader's body is another's next request."""
    inner = b"GET " + _SECRET + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    names = draw.choice((
        b"Content-Length: %d\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: %d",
        b"Content-Length: %d\r\nTransfer-Encoding : chunked", b"Content-Length: %d\r\nTransfer-Encoding:\tchunked",
        b"Content-Length: %d\r\nTransfer-Encoding: xchunked",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked, identity",
        b"Content-Length: %d\r\nTransfer-Encoding: identity", b"Content-Length: %d\r\nContent-Length: 0",
        b"Content-Length: 0\r\nContent-Length: %d", b"Content-Length: %d\nTransfer-Encoding: chunked",
        b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked",
        b"Content-Length: %d\r\nTransfer-Encoding: \x0bchunked",
        b"Content-Length: %d\r\n Transfer-Encoding: chunked", b"content-length: %d\r\nCONTENT-LENGTH: 3",
    ))  # fmt: skip
    body = draw.choice((b"0\r\n\r\n" + inner, inner, b"3\r\nabc\r\n0\r\n\r\n" + inner))
    length = draw.choice((0, 3, 5, len(body), len(body) - len(inner)))
    head = re.sub(rb"\r\n(Content-Length|Transfer-Encoding): [^\r]*", b"", text[: text.index(b"\r\n\r\n")])
    return head + b"\r\n" + names % length + b"\r\n\r\n" + body


def _head(text: bytes, line: bytes) -> bytes:
    """A request's head without what it says of its body, for another target; its end is still to come."""
    head = re.sub(rb"\r\n(Content-[A-Z][a-z]*|Transfer-Encoding): [^\r]*", b"", text[: text.index(b"\r\n\r\n") + 2])
    return re.sub(rb"^\S+ \S+", line, head)


def _page(text: bytes, path: bytes) -> bytes:
    """A page asked for by the caller of a request."""
    return _head(text, b"GET " + path) + b"\r\n"


def _pipelined(draw: random.Random, text: bytes) -> bytes:
    """Many requests at once, the last of which is for what the proxy does not show."""
    several = (text, _page(text, b"/ping"))
    return b"".join(draw.choice(several) for _ in range(draw.randint(1, 12))) + _page(text, _SECRET)


def _before_pages(draw: random.Random, text: bytes) -> bytes:
    """The same with one prediction at most, at the head: TorchServe may lose one that follows (docs/reliability.md)."""
    return text + _page(text, b"/ping") * draw.randrange(5) + _page(text, _SECRET)


def _form(draw: random.Random, text: bytes) -> bytes:
    """A form that is none."""
    bodies = (
        _FORM[: draw.randrange(len(_FORM))], _FORM.replace(b"--cut--", b"--cut"), _FORM.replace(b"cut", b"cat", 1),
        _FORM.replace(b'name="image"', b'name="' + b"n" * 9000 + b'"'), _FORM.replace(b'name="image"; ', b""),
        _FORM.replace(b'name="image"', b'name="../../image"'),
        _FORM.replace(b"image/png", b"multipart/mixed; boundary=cut"),
        _FORM.replace(b"\r\n\r\n", b"\r\n", 1), _FORM.replace(b"Content-Disposition", b"\0", 1), b"--cut\r\n" * 3000,
        b"".join(b'--cut\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % number for number in range(500)),
        _FORM.replace(b'"a.png"', b'"' + b"\xff" * 2000 + b'"'), _FORM.replace(b'"a.png"', b'"/etc/passwd"'),
        b"--cut--", b"", b"\r\n" * 5000, _FORM.replace(b"form-data", b"attachment", 1),
        _FORM.replace(b'"fps"', b'"body"'),
    )  # fmt: skip
    body = draw.choice(bodies)
    kind = draw.choice(
        (b"boundary=cut", b"boundary=", b"", b'boundary="cut', b"boundary=" + b"c" * 5000, b"boundary=--")
    )
    return (
        _head(text, b"POST /predictions/i2v")
        + b"Content-Type: multipart/form-data; %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
        + body
    )


_MUTATIONS: tuple[Mutate, ...] = (_bytes, _cut, _line, _header, _chunks, _smuggled, _form)
_MORE: dict[str, Mutate] = {"proxy": _pipelined, "direct": _before_pages}


def _send(draw: random.Random, door: Door, text: bytes) -> bytes:
    """What comes back; sent at once or in pieces, and left politely or not."""
    pieces = [text]
    if draw.random() < 0.3:
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(1, 4)))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer = b""
    is_rude = draw.random() < 0.3
    with contextlib.suppress(OSError), socket.create_connection((door.host, door.port), timeout=_GOOD_SECONDS) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_rude:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
        for piece in pieces:
            link.sendall(piece)
        link.settimeout(_SILENCE)
        while part := link.recv(65536):
            answer += part
    return answer


def _round(each: Round, doors: tuple[Door, ...]) -> None:
    """Some mutants at each door, and a good request after them."""
    for number in range(MUTANTS):
        door = doors[number % len(doors)]
        mutate = each.draw.choice((*_MUTATIONS, _MORE[door.name]))
        text = mutate(each.draw, each.draw.choice(door.good()))
        answer = _send(each.draw, door, text)
        each.report.count_of(f"{door.name} {(answer[9:12].decode() if answer.startswith(b'HTTP/1.') else 'no answer')}")
        said = f"{door.name}, {mutate.__name__}: {text[:2000]!r} was answered {answer[:2000]!r}"
        check(door.name != "proxy" or _REVEALS not in answer, said)
        # A body that cannot be read behind a head that was refused already is left to nginx's own page.
        check(door.name != "proxy" or b"<html>" not in answer or b" 400 " in answer[:13], said)
        check(b"Traceback" not in answer and b"/site-packages/" not in answer, said)
    for door in doors:
        _check_serves(door)


def _check_serves(door: Door) -> None:
    """A good request, on a connection of its own, gets its own answer."""
    address, bearer = f"http://{door.host}:{door.port}", {"Authorization": f"Bearer {door.key}"}
    with requests.Session() as session:
        session.trust_env = False
        ping = session.get(f"{address}/ping", headers=bearer, timeout=_GOOD_SECONDS)
        check((ping.status_code, ping.json().get("status")) == (200, "Healthy"), f"{door.name}: {ping.text[:300]}")
        headers = bearer | {"Content-Type": "application/json"}
        ends = time.monotonic() + _GOOD_SECONDS
        while True:
            refused = session.post(f"{address}/predictions/t2i", _WRONG, headers=headers, timeout=_GOOD_SECONDS)
            if refused.status_code != 503 or time.monotonic() > ends:  # the mutants of others fill the queue
                break
            time.sleep(0.05)
        check((refused.status_code, "width" in refused.text) == (422, True), f"{door.name}: {refused.text[:300]}")


@contextmanager
def _doors(running: Running, folder: Path) -> Iterator[tuple[Door, ...]]:
    key = json.loads(running.key_file.read_text())["inference"]["key"]
    tokens = tokens_file(folder)
    with proxy(tokens, *before(running.url, running.key_file, free_port())) as front:
        ports = [(name, urlsplit(url).port or 0) for name, url in (("proxy", front.url), ("direct", running.url))]
        yield tuple(Door(name, "127.0.0.1", port, TOKEN if name == "proxy" else key) for name, port in ports)


def _run(report: Report) -> None:
    with report.server() as running, _doors(running, report.folder) as doors:
        until(lambda: all(running.pids(stage) for stage in Stage), "both stages have workers")
        pids = {stage: running.pids(stage) for stage in Stage}
        report.spread(lambda each: _round(each, doors), threads=16)
        for door in doors:
            _check_serves(door)
        now = {stage: running.pids(stage) for stage in Stage}
        if now != pids:
            report.fail(f"workers were {pids}, and are {now}")


CASE = Case(
    "Z4",
    "raw HTTP mutants through the proxy and direct: lines, headers, chunks, lengths, pipelines, forms, slow and cut",
    "worker pids unchanged, nothing hangs, nothing past the proxy, the next good request is answered",
    count=10_000 // MUTANTS,
    short=2,
    run=_run,
    unit=f"rounds of {MUTANTS} mutants",
    why_not=lambda: "" if NGINX else "nginx is not installed (apt-get install nginx-light)",
)
