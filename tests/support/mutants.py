"""Requests as they should be, and mutants of them: lines, headers, chunks, lengths, forms, pipelines that are wrong."""

import json
import random
import re
from collections.abc import Callable

from support.picture_parts import encoded, noise

_HIDDEN_PAGE = b"/api-description"
"""TorchServe shows it to everyone, the proxy to no one: a caller who gets it through the proxy got past it."""
_PICTURE = encoded(noise(64, 64), "PNG")
# Both are refused by the stage itself, so that no mutant keeps a model busy.
WRONG = json.dumps({"prompt": "a", "width": 3}).encode()
FORM = (
    b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    + _PICTURE
    + b'\r\n--cut\r\nContent-Disposition: form-data; name="fps"\r\n\r\n0\r\n--cut--\r\n'
)
Mutate = Callable[[random.Random, bytes], bytes]


def good_requests(key: str) -> list[bytes]:
    """Requests as they should be, from a caller with this key."""

    def head(line: bytes, *headers: bytes) -> bytes:
        own = (b"Host: x", f"Authorization: Bearer {key}".encode())
        return b"\r\n".join((line + b" HTTP/1.1", *own, *headers, b"", b""))

    size = f"Content-Length: {len(WRONG)}".encode()
    json_head = head(b"POST /predictions/t2i", b"Content-Type: application/json", size)
    form_size = f"Content-Length: {len(FORM)}".encode()
    kind = b"Content-Type: multipart/form-data; boundary=cut"
    chunked = head(b"POST /predictions/t2i", b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    return [
        head(b"GET /ping"),
        json_head + WRONG,
        head(b"POST /predictions/i2v", kind, form_size) + FORM,
        chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(WRONG), WRONG),
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
        b"",
        b" ",
        b"GET",
        b"GET /ping",
        b"get /ping HTTP/1.1",
        b"GET /ping HTTP/9.9",
        b"GET  /ping  HTTP/1.1",
        b"GET\t/ping\tHTTP/1.1",
        b"\0GET /ping HTTP/1.1",
        b"CONNECT 127.0.0.1:8081 HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"GET http://127.0.0.1:8081/models HTTP/1.1",
        b"GET //ping HTTP/1.1",
        b"GET /../models HTTP/1.1",
        b"GET /%2e%2e/models HTTP/1.1",
        b"GET /ping%00 HTTP/1.1",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        b"POST /predictions/t2i;x=1 HTTP/1.1",
        b"POST /predictions/t2i%2f..%2f HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"POST /predictions/" + b"%ff" * 50 + b" HTTP/1.1",
        b"GET /predictions/../api-description HTTP/1.1",
        b"GET /ping HTTP/1.1\rX: y",
        b"GET /ping\nHTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )
    return draw.choice(lines) + text[text.index(b"\r\n") :]


def _header(draw: random.Random, text: bytes) -> bytes:
    """One more header, or very many, or one that is none."""
    headers = (
        b"X: " + b"a" * draw.choice((1000, 9000, 100_000)),
        b"X" * 20_000 + b": y",
        b": y",
        b"X",
        b" folded",
        b"X : y",
        b"X: \0",
        b"X: \xff\xfe",
        b"X: a\rInjected: b",
        b"Host: y",
        b"Authorization: Bearer x",
        b"Content-Length: 0",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 1, 1",
        b"Content-Length: +5",
        b"Content-Length: 0x10",
        b"Content-Length: 1e3",
        b"Expect: 100-continue",
        b"Expect: nonsense",
        b"Connection: upgrade\r\nUpgrade: h2c",
        b"Connection: close, Authorization",
        b"Content-Encoding: gzip",
        b"Content-Type: multipart/form-data",
        b"Accept: application/x-ndjson",
        b"Range: bytes=0-0,1-1",
        b"describe: True",
        b"X-Forwarded-For: 127.0.0.1",
        b"Trailer: Authorization",
        b"TE: trailers",
        b"\r\n".join(b"X%d: y" % number for number in range(3000)),
    )
    at = text.index(b"\r\n") + 2
    return text[:at] + draw.choice(headers) + b"\r\n" + text[at:]


def _chunks(draw: random.Random, text: bytes) -> bytes:
    """A chunked body whose chunks are wrong."""
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", text[: text.index(b"\r\n\r\n") + 4], count=1)
    bodies = (
        b"ffffffffffffffff\r\na\r\n0\r\n\r\n",
        b"-1\r\na\r\n0\r\n\r\n",
        b"\r\n\r\n",
        b"5\r\nab\r\n0\r\n\r\n",
        b"1\r\nabcdef\r\n0\r\n\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5;" + b"e" * 50_000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"1\na\n0\n\n",
        b"0\r\nX: " + b"t" * 50_000 + b"\r\n\r\n",
        b"1\r\na\r\n" * 2000,
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b"g\r\n",
        b"0\r\nContent-Length: 5\r\n\r\nGET /api-description HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    return head + draw.choice(bodies)


def _smuggled(draw: random.Random, text: bytes) -> bytes:
    """Two lengths, or two kinds of length: one reader's body is another's next request."""
    inner = b"GET " + _HIDDEN_PAGE + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    names = draw.choice(
        (
            b"Content-Length: %d\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: %d",
            b"Content-Length: %d\r\nTransfer-Encoding : chunked",
            b"Content-Length: %d\r\nTransfer-Encoding:\tchunked",
            b"Content-Length: %d\r\nTransfer-Encoding: xchunked",
            b"Content-Length: %d\r\nTransfer-Encoding: chunked, identity",
            b"Content-Length: %d\r\nTransfer-Encoding: identity",
            b"Content-Length: %d\r\nContent-Length: 0",
            b"Content-Length: 0\r\nContent-Length: %d",
            b"Content-Length: %d\nTransfer-Encoding: chunked",
            b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked",
            b"Content-Length: %d\r\nTransfer-Encoding: \x0bchunked",
            b"Content-Length: %d\r\n Transfer-Encoding: chunked",
            b"content-length: %d\r\nCONTENT-LENGTH: 3",
        )
    )
    body = draw.choice((b"0\r\n\r\n" + inner, inner, b"3\r\nabc\r\n0\r\n\r\n" + inner))
    length = draw.choice((0, 3, 5, len(body), len(body) - len(inner)))
    head = re.sub(rb"\r\n(Content-Length|Transfer-Encoding): [^\r]*", b"", text[: text.index(b"\r\n\r\n")])
    return head + b"\r\n" + names % length + b"\r\n\r\n" + body


def _head(text: bytes, line: bytes) -> bytes:
    """A request's head without what it says of its body, for another target; its end is still to come."""
    head = re.sub(rb"\r\n(Content-[A-Z][a-z]*|Transfer-Encoding): [^\r]*", b"", text[: text.index(b"\r\n\r\n") + 2])
    return re.sub(rb"^\S+ \S+", line, head)


def _page(text: bytes, path: bytes, more: bytes = b"") -> bytes:
    """A page asked for by the caller of a request."""
    return _head(text, b"GET " + path) + more + b"\r\n"


def secret(text: bytes) -> bytes:
    """The last thing that is asked for over a connection."""
    return _page(text, _HIDDEN_PAGE, b"Connection: close\r\n")


def pipelined(draw: random.Random, text: bytes) -> bytes:
    """Many requests at once, the last of which is for what the proxy does not show."""
    several = (text, _page(text, b"/ping"))
    return b"".join(draw.choice(several) for _ in range(draw.randint(1, 12))) + secret(text)


def before_pages(draw: random.Random, text: bytes) -> bytes:
    """The same with one prediction at most, at the head: TorchServe may lose one that follows (docs/reliability.md)."""
    return text + _page(text, b"/ping") * draw.randrange(5) + secret(text)


def _form(draw: random.Random, text: bytes) -> bytes:
    """A form that is none."""
    bodies = (
        FORM[: draw.randrange(len(FORM))],
        FORM.replace(b"--cut--", b"--cut"),
        FORM.replace(b"cut", b"cat", 1),
        FORM.replace(b'name="image"', b'name="' + b"n" * 9000 + b'"'),
        FORM.replace(b'name="image"; ', b""),
        FORM.replace(b'name="image"', b'name="../../image"'),
        FORM.replace(b"image/png", b"multipart/mixed; boundary=cut"),
        FORM.replace(b"\r\n\r\n", b"\r\n", 1),
        FORM.replace(b"Content-Disposition", b"\0", 1),
        b"--cut\r\n" * 3000,
        b"".join(b'--cut\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % number for number in range(500)),
        FORM.replace(b'"a.png"', b'"' + b"\xff" * 2000 + b'"'),
        FORM.replace(b'"a.png"', b'"/etc/passwd"'),
        b"--cut--",
        b"",
        b"\r\n" * 5000,
        FORM.replace(b"form-data", b"attachment", 1),
        FORM.replace(b'"fps"', b'"body"'),
    )
    body = draw.choice(bodies)
    kind = draw.choice(
        (b"boundary=cut", b"boundary=", b"", b'boundary="cut', b"boundary=" + b"c" * 5000, b"boundary=--")
    )
    return (
        _head(text, b"POST /predictions/i2v")
        + b"Content-Type: multipart/form-data; %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
        + body
    )


MUTATIONS: tuple[Mutate, ...] = (_bytes, _cut, _line, _header, _chunks, _smuggled, _form)
