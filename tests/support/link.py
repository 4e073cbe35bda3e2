"""A bad network between two hosts: a link in user space that loses, delays, reorders and cuts, packet by packet.

It does what `tc netem` does, on kernels without that module too, and all its chance comes from one seed. Two network
namespaces each have a TUN device, whose packets this process carries across.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.namespaces import Namespace, joined, why_not

CLIENT, SERVER = "198.18.1.1", "198.18.1.2"
_TUN = Path("/dev/net/tun")
_SET_NAME, _PACKETS = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI


def obstacle() -> str:
    """Why there can be no such link here; empty where there can."""
    return why_not() or ("" if os.access(_TUN, os.R_OK | os.W_OK) else f"{_TUN} cannot be opened")


@dataclass(frozen=True)
class Weather:
    """How a link treats each packet."""

    loss: float = 0.0
    """Part of the packets that vanish."""
    delay: float = 0.0
    """Seconds."""
    jitter: float = 0.0
    """Seconds more, at most, drawn for each packet: they overtake each other."""


class Link:
    """Carries packets between two devices until it is closed."""

    def __init__(self, devices: tuple[int, int]) -> None:
        self._devices = devices
        self._ends = threading.Event()
        self._draw = random.Random(0)
        self.weather = Weather()
        self.is_cut = False
        self.lost = self.carried = self.overtaken = 0
        self._thread = threading.Thread(target=self._carry, name="link")
        self._thread.start()

    def begin(self, weather: Weather, seed: int) -> None:
        """Change the weather and draw from another seed."""
        self._draw, self.weather, self.is_cut = random.Random(seed), weather, False

    def close(self) -> None:
        """Carry no more."""
        self._ends.set()
        self._thread.join()
        for device in self._devices:
            os.close(device)

    def _carry(self) -> None:
        first, second = self._devices
        other = {first: second, second: first}
        due: list[tuple[float, int, int, bytes]] = []
        count, last_sent = 0, {first: 0, second: 0}
        while not self._ends.is_set():
            wait = max(0.0, min(0.02, due[0][0] - time.monotonic())) if due else 0.02
            for device in select.select(self._devices, (), (), wait)[0]:
                packet = os.read(device, 65536)
                weather, draw = self.weather, self._draw
                if self.is_cut or draw.random() < weather.loss:
                    self.lost += 1
                    continue
                count += 1
                at = time.monotonic() + weather.delay + draw.uniform(0.0, weather.jitter)
                heapq.heappush(due, (at, count, other[device], packet))
            while due and due[0][0] <= time.monotonic():
                _, number, device, packet = heapq.heappop(due)
                if self.is_cut:
                    self.lost += 1
                    continue
                self.overtaken += number < last_sent[device]
                last_sent[device] = number
                os.write(device, packet)
                self.carried += 1


def _device(namespace: Namespace, address: str, peer: str) -> int:
    """A TUN device in a namespace; its packets are read and written here."""

    def opened() -> int:
        handle = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(handle, _SET_NAME, struct.pack("16sH22x", b"tun0", _PACKETS))
        return handle

    handle: int = namespace.call(opened)
    namespace.ip("address", "add", address, "peer", peer, "dev", "tun0")
    namespace.ip("link", "set", "tun0", "up")
    return handle


@contextmanager
def linked() -> Iterator[tuple[Link, Namespace, Namespace]]:
    """A link, and the namespaces at its ends: the client's and the server's."""
    with joined(1) as (near, (far,)):
        link = Link((_device(near, CLIENT, SERVER), _device(far, SERVER, CLIENT)))
        try:
            yield link, near, far
        finally:
            link.close()
