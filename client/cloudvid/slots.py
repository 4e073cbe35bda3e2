"""How many requests a stage gets at once: one for each READY worker, and one that waits."""

import threading
from collections.abc import Mapping

from cloudvid.client import Client
from cloudvid.errors import CloudVidError
from cloudvid_schema.protocol import Stage

_SECONDS = 10.0


class Slots:
    """Counts the workers of both stages, again and again while it is watched.

    Args:
        client: whom to ask.
        fallback: requests at once where the management API cannot be asked; default: as a proxy before the server
            counts the workers of one host, else 1.
    """

    def __init__(self, client: Client, fallback: Mapping[Stage, int]) -> None:
        self._client = client
        self._stop = threading.Event()
        self._fallback = fallback
        self._counts = {stage: fallback.get(stage, 1) for stage in Stage}
        self._refresh()
        threading.Thread(target=self._watch, name="slots", daemon=True).start()

    def count(self, stage: Stage) -> int:
        """Requests that may run at once."""
        return self._counts[stage]

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._refresh()

    def _refresh(self) -> None:
        for stage in Stage:
            try:
                # Who gave a number may know of more hosts than a proxy tells of.
                given = stage in self._fallback
                readiness = self._client.readiness(stage) if given else self._client.workers_seen(stage)
            except CloudVidError:
                continue
            if readiness is not None:  # else the last count stands
                self._counts[stage] = max(1, readiness.ready) + 1
