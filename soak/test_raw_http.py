"""Z4: requests that are no HTTP, or nearly, byte by byte: through the proxy and at TorchServe's own port.

Whatever arrives, no worker may suffer, nothing behind the proxy may be reached that it does not let through, and the
next good request is answered.
"""

import contextlib
import random
import socket
import struct
import time
from functools import partial
from urllib.parse import urlsplit

from cloudvid.endpoints.connection import plain_session
from cloudvid_schema.protocol import Stage
from soak.rounds import Round, Rounds, case
from soak.servers import Served
from support.loopback import free_port
from support.mutants import MUTATIONS, WRONG, before_pages, good_requests, pipelined, secret
from support.proxies import TOKEN, before, needs_nginx, proxy, tokens_file
from support.waiting import until

_MUTANTS = 50
"""Of one round, half of them through the proxy."""
_SILENCE = 0.2  # seconds without a byte of the answer, after which the sender says that it has no more to send
_HANGS = 20.0  # seconds without a byte, and without an end
_GOOD_SECONDS = 60
_PIPELINED = {"proxy": pipelined, "direct": before_pages}
_REVEALS, _HIDDEN = b'"openapi"', b'"ResourceNotFound"'
Doors = dict[str, tuple[int, str]]
"""Where mutants are sent: port on loopback, and the key that opens it, of `proxy` and `direct`."""


@needs_nginx
@case("Z4", count=10_000 // _MUTANTS, short=2, unit=f"rounds of {_MUTANTS} mutants")
def test_raw_http(rounds: Rounds, server: Served) -> None:
    """Raw HTTP mutants through the proxy and direct: lines, headers, chunks, lengths, pipelines, forms, slow and cut.

    Worker pids unchanged, nothing hangs, nothing past the proxy, the next good request is answered.
    """
    own, tokens = before(server.url, server.key_file, free_port()), tokens_file(rounds.folder)
    with proxy(tokens, *own) as front:
        ports = [urlsplit(url).port or 0 for url in (front.url, server.url)]
        doors: Doors = {"proxy": (ports[0], TOKEN), "direct": (ports[1], server.key("inference"))}
        until(lambda: all(server.pids(stage) for stage in Stage), "both stages have workers")
        page = secret(good_requests(doors["direct"][1])[0])
        shown = _send(random.Random(0), "direct", doors["direct"][0], page, silence=2.0)
        assert _REVEALS in shown, f"there is no page to hide: {shown!r}"
        pids = {stage: server.pids(stage) for stage in Stage}
        rounds.do(partial(_round, doors), threads=16)
        _check_serve(doors)
        now = {stage: server.pids(stage) for stage in Stage}
        assert now == pids, f"workers were {pids}, and are {now}"


def _send(draw: random.Random, name: str, port: int, text: bytes, silence: float = _SILENCE) -> bytes:
    """What comes back; sent at once or in pieces, and left politely or not.

    Raises:
        AssertionError: the door neither answers nor closes.
    """
    pieces = [text]
    if draw.random() < 0.3:
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(1, 4)))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer = b""
    is_rude = draw.random() < 0.3
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_GOOD_SECONDS) as link:
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
                problem = f"{name} neither answers nor closes: {text[:2000]!r}: {answer[:2000]!r}"
                assert patience == silence, problem
            if is_rude:
                break
            link.shutdown(socket.SHUT_WR)
    return answer


def _round(doors: Doors, each: Round) -> None:
    """Some mutants at each door, and a good request after them."""
    for number in range(_MUTANTS):
        name = list(doors)[number % len(doors)]
        port, key = doors[name]
        mutate = each.draw.choice((*MUTATIONS, _PIPELINED[name]))
        text = mutate(each.draw, each.draw.choice(good_requests(key)))
        is_whole = mutate is pipelined
        answer = _send(each.draw, name, port, text, _GOOD_SECONDS if is_whole else _SILENCE)
        each.rounds.count(f"{name} {(answer[9:12].decode() if answer.startswith(b'HTTP/1.') else 'no answer')}")
        sent = f"{name}, {mutate.__name__}: {text[:2000]!r} was answered {answer[:2000]!r}"
        assert name != "proxy" or _REVEALS not in answer, sent
        assert not is_whole or _HIDDEN in answer, sent
        # A body that cannot be read behind a head that was refused already is left to nginx's own page.
        assert name != "proxy" or b"<html>" not in answer or b" 400 " in answer[:13], sent
        assert b"Traceback" not in answer and b"/site-packages/" not in answer, sent
    _check_serve(doors)


def _check_serve(doors: Doors) -> None:
    """At each door a good request on a new connection gets the right answer."""
    for name, (port, key) in doors.items():
        address, bearer = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
        with plain_session() as session:
            ping = session.get(f"{address}/ping", headers=bearer, timeout=_GOOD_SECONDS)
            assert (ping.status_code, ping.json().get("status")) == (200, "Healthy"), f"{name}: {ping.text[:300]}"
            headers = bearer | {"Content-Type": "application/json"}
            ends = time.monotonic() + _GOOD_SECONDS
            while True:
                refused = session.post(f"{address}/predictions/t2i", WRONG, headers=headers, timeout=_GOOD_SECONDS)
                if refused.status_code != 503 or time.monotonic() > ends:  # the mutants of others fill the queue
                    break
                time.sleep(0.05)
            assert (refused.status_code, "width" in refused.text) == (422, True), f"{name}: {refused.text[:300]}"
