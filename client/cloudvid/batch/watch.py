"""Watches the stages during a batch: how many requests each takes, its model, and whether it has failed for good."""

import math
import threading
from collections.abc import Mapping

from cloudvid.endpoints.errors import CloudVidError, Unhealthy
from cloudvid.endpoints.failures import DOWN_SECONDS
from cloudvid.server.server import Server
from cloudvid_schema.protocol import Description, Stage

_SECONDS = 4.0
_LOOKS = 4  # in a row
_MODEL_SECONDS = 30.0


class Watch:
    """Looks at both stages again and again, in threads of its own, from `start` until `stop`.

    Args:
        server: where to look.
        fallback: concurrent requests if workers cannot be counted; default: the workers that a proxy counts on one
            host, else 1.
        seconds: between two looks.
    """

    def __init__(self, server: Server, fallback: Mapping[Stage, int], seconds: float = _SECONDS) -> None:
        self._server, self._fallback, self._seconds = server, fallback, seconds
        self._failures = dict.fromkeys(Stage, 0)
        """Number of looks in a row at which the stage had no worker and the server reported a failure."""
        self._failed_before = dict.fromkeys(Stage, False)
        """Whether the server reported a failure while the stage still had a worker: then it meant another worker."""
        self._stop = threading.Event()
        self.slots = {stage: fallback.get(stage, 1) for stage in Stage}
        """Number of concurrent requests: one for every ready worker, and one that waits."""
        self._known = {stage: threading.Event() for stage in Stage}
        self.models: dict[Stage, str | None] = dict.fromkeys(Stage)
        """Each stage's model; None if no worker answered in time.

        A busy worker answers once it is free; the first file shows the model of one that stays busy for longer.
        """
        self._counted: dict[Stage, int] = {}
        """Workers, where they can be counted."""
        self.described: dict[Stage, Description] = {}
        """What the workers said of themselves."""

    def start(self) -> None:
        """Begin to watch; see `is_ready`."""
        for stage in Stage:
            threading.Thread(target=self._watch, args=(stage,), name=f"watch {stage}", daemon=True).start()

    @property
    def workers(self) -> dict[Stage, int]:
        """How many requests each stage carries out at once."""
        return {stage: self._counted.get(stage, slots) for stage, slots in self.slots.items()}

    def is_ready(self, timeout: float) -> bool:
        """Whether the models are known, or could not be learned, within so many seconds."""
        return all(known.wait(timeout) for known in self._known.values())

    def given_up(self, stage: Stage) -> Unhealthy | None:
        """Why a stage has failed for good, once the server has reported it for several looks in a row.

        TorchServe keeps the requests of such a stage in its queue, so they would never be answered. If it reported a
        failure before, of another worker, this stage's workers get the time that they need to restart.
        """
        looks = math.ceil(DOWN_SECONDS / self._seconds) if self._failed_before[stage] else _LOOKS
        if self._failures[stage] < looks:
            return None
        return Unhealthy(f"{self._server.urls[stage]}/ping answers 500: workers fail to start; see the server's log")

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self, stage: Stage) -> None:
        is_managed = self._look(stage)
        server = self._server
        found = server.describe(stage, timeout=_MODEL_SECONDS) if is_managed else server.jobs.description(stage)
        if found:
            self.models[stage], self.described[stage] = found.model, found
        self._known[stage].set()
        while not self._stop.wait(self._seconds):
            self._look(stage)

    def _look(self, stage: Stage) -> bool:
        """Look once. Returns whether the management API counts the workers."""
        try:
            seen = self._server.look(stage)
        except CloudVidError:
            return False
        by_proxy = seen.counted_by == "proxy" and stage not in self._fallback  # the user may know of more hosts
        if seen.counted_by == "management" or by_proxy:  # otherwise the last count remains valid
            self._counted[stage] = max(1, seen.ready)
            self.slots[stage] = self._counted[stage] + 1
            if seen.ready:
                self._failed_before[stage] = seen.unhealthy
            self._failures[stage] = self._failures[stage] + 1 if seen.unhealthy and not seen.ready else 0
        return seen.counted_by == "management"
