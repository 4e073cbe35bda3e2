"""Memory of a server's processes over the requests that it served."""

import statistics
import threading

import psutil
from conftest import Running

from soak.servers import processes

_SECONDS = 2.0
_MIB = 2**20


class Memory:
    """Samples a server's resident memory until it is told to stop."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._served = 0
        self._samples: list[tuple[int, float, float]] = []
        """Requests served, MiB of the server itself, MiB of its workers."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def served(self, requests: int) -> None:
        """So many more requests were served."""
        with self._lock:
            self._served += requests

    def stop(self) -> None:
        """Take the last sample."""
        self._stop.set()
        self._thread.join()

    def growth(self) -> tuple[str, float]:
        """What the memory did once a fifth of the requests was served: in words, and MiB in all."""
        warm = [sample for sample in self._samples if sample[0] >= self._served / 5]
        before, after = warm[0], warm[-1]
        server, workers = after[1] - before[1], after[2] - before[2]
        counts = [sample[0] / 1000 for sample in warm]
        slope = 0.0
        if len(set(counts)) > 1:
            slope = statistics.linear_regression(counts, [sample[1] + sample[2] for sample in warm]).slope
        text = (
            f"{server:+.0f} MiB of the server, {workers:+.0f} MiB of its workers from request {before[0]:,} on "
            f"({before[1]:.0f} and {before[2]:.0f} MiB then), {slope:+.1f} MiB in 1,000 requests"
        )
        return text, server + workers

    def _watch(self) -> None:
        while True:
            ends = self._stop.wait(_SECONDS)
            sizes = {"java": 0.0, "python": 0.0}
            for process in processes(self._running):
                try:
                    sizes["java" if process.name() == "java" else "python"] += process.memory_info().rss / _MIB
                except psutil.Error:
                    continue  # it has just ended
            with self._lock:
                self._samples.append((self._served, sizes["java"], sizes["python"]))
            if ends:
                return
