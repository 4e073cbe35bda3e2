"""Servers in a thread of this process, and how a client or a command line gets to them."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TypeVar

from cloudvid import Client
from deploy import torchserve

Served = TypeVar("Served", bound=ThreadingHTTPServer)
_GIVEN: set[int] = set()
_HELD: list[socket.socket] = []


@contextmanager
def serving(server: Served) -> Iterator[Served]:
    """The server at work; it is closed at the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(server, **options) -> Client:
    """A client of one address for both stages and the management API."""
    return Client(server.url, **{"management": server.url, "token": "t", **options})


def connection(server) -> list[str]:
    """The same for a command line."""
    return ["--server", server.url, "--management", server.url, "--token", "t"]


def free_port() -> int:
    """A port that is free together with the five above it, and that no other test was given, in either lane."""
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while (port := torchserve.free_port()) in _GIVEN or port // 10 % 2 != lane % 2:
        pass
    _GIVEN.add(port)
    return port


def closed_port() -> int:
    """A port that refuses connections; it is held, so that no other process can listen on it."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return held.getsockname()[1]
