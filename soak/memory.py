"""Memory of a server's processes over the requests that it served."""

import contextlib
import statistics
import threading
from dataclasses import dataclass

import psutil
from conftest import Running

from soak.servers import processes

_SECONDS = 2.0


@dataclass(frozen=True)
class _Sample:
    served: int
    """Requests, until then."""
    server: float
    """MiB of the JVM."""
    workers: float
    """MiB."""


class Memory:
    """Samples a server's resident memory until it is told to stop."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._served = 0
        self._samples: list[_Sample] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def served(self, requests: int) -> None:
        """So many more requests were served."""
        with self._lock:
            self._served += requests

    def stop(self) -> None:
        """Take no more samples."""
        self._stop.set()
        self._thread.join()

    def growth(self) -> tuple[str, dict[str, float]]:
        """What the memory did under load, once a fifth of the requests was served: in words, and MiB of each part.

        Medians of the first and the last fifth of the samples: each single one has more or less under way.
        """
        warm = [sample for sample in self._samples if sample.served >= self._served / 5] or self._samples
        part = max(1, len(warm) // 5)
        texts, grown = [], {}
        for name in ("server", "workers"):
            sizes = [getattr(sample, name) for sample in warm]
            before, after = statistics.median(sizes[:part]), statistics.median(sizes[-part:])
            grown[name] = after - before
            texts.append(f"{name} {before:,.0f} MiB, later {after:,.0f}")
        return f"{'; '.join(texts)} (medians of {part} samples from request {warm[0].served:,} on)", grown

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS if self._samples else 0.0):
            found = processes(self._running)
            with self._lock:
                self._samples.append(_Sample(self._served, _mib(found.java), _mib(found.workers)))


def _mib(of: list[psutil.Process]) -> float:
    size = 0
    for process in of:
        with contextlib.suppress(psutil.Error):  # it has just ended
            size += process.memory_info().rss
    return size / 2**20
