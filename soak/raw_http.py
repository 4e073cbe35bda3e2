"""Z4: requests that are no HTTP, or nearly, byte by byte: through the proxy and at TorchServe's own port.

Whatever arrives, no worker may suffer, nothing behind the proxy may be reached that it does not let through, and the
next good request is answered.
"""

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from conftest import Running
from loopback import free_port
from proxies import NGINX, TOKEN, before, proxy, tokens_file

from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.mutants import MUTATIONS, WRONG, before_pages, good_requests, pipelined, secret
from soak.report import Report, Round
from soak.servers import until

MUTANTS = 50
"""Of one round, half of them through the proxy."""
_SILENCE = 0.2  # seconds without a byte of the answer, after which the sender says that it has no more to send
_HANGS = 20.0  # seconds without a byte, and without an end
_GOOD_SECONDS = 60
_PIPELINED = {"proxy": pipelined, "direct": before_pages}
_REVEALS, _HIDDEN = b'"openapi"', b'"ResourceNotFound"'


@dataclass(frozen=True)
class Door:
    """Where mutants are sent, with what opens it."""

    name: str
    host: str
    port: int
    key: str


def _send(draw: random.Random, door: Door, text: bytes, silence: float = _SILENCE) -> bytes:
    """What comes back; sent at once or in pieces, and left politely or not.

    Raises:
        Wrong: the door neither answers nor closes.
    """
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
        for patience in (silence, _HANGS):
            link.settimeout(patience)
            try:
                while part := link.recv(65536):
                    answer += part
                break
            except TimeoutError:
                said = f"{door.name} neither answers nor closes: {text[:2000]!r}: {answer[:2000]!r}"
                check(patience == silence, said)
            if is_rude:
                break
            link.shutdown(socket.SHUT_WR)
    return answer


def _round(each: Round, doors: tuple[Door, ...]) -> None:
    """Some mutants at each door, and a good request after them."""
    for number in range(MUTANTS):
        door = doors[number % len(doors)]
        mutate = each.draw.choice((*MUTATIONS, _PIPELINED[door.name]))
        text = mutate(each.draw, each.draw.choice(good_requests(door.key)))
        is_whole = mutate is pipelined
        answer = _send(each.draw, door, text, _GOOD_SECONDS if is_whole else _SILENCE)
        each.report.count_of(f"{door.name} {(answer[9:12].decode() if answer.startswith(b'HTTP/1.') else 'no answer')}")
        said = f"{door.name}, {mutate.__name__}: {text[:2000]!r} was answered {answer[:2000]!r}"
        check(door.name != "proxy" or _REVEALS not in answer, said)
        check(not is_whole or _HIDDEN in answer, said)
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
            refused = session.post(f"{address}/predictions/t2i", WRONG, headers=headers, timeout=_GOOD_SECONDS)
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
        shown = _send(random.Random(0), doors[1], secret(good_requests(doors[1].key)[0]), silence=2.0)
        check(_REVEALS in shown, f"there is no page to hide: {shown!r}")
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
