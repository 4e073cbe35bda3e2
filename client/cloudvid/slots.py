"""What a batch knows of the stages' workers: how many requests each stage gets at once (one for each READY worker, and
one that waits; none, once it is given up), and which model it has.
"""

import math
import threading
from collections.abc import Mapping

from cloudvid.client import Client
from cloudvid.errors import CloudVidError, Unhealthy
from cloudvid.failures import DOWN_SECONDS
from cloudvid.management import Readiness
from cloudvid_schema.protocol import Stage

_SECONDS = 4.0
_LOOKS = 4  # in a row
_MODEL_SECONDS = 30.0


class Slots:
    """Asks both stages for their models, and counts their workers, again and again until it is stopped.

    Args:
        client: whom to ask.
        fallback: requests at once where the management API cannot be asked; default: as a proxy before the server
            counts the workers of one host, else 1.
        seconds: between two looks.
    """

    def __init__(self, client: Client, fallback: Mapping[Stage, int], seconds: float = _SECONDS) -> None:
        self._client, self._seconds = client, seconds
        self._complaints: dict[Stage, list[Unhealthy]] = {stage: [] for stage in Stage}
        self._was_unhealthy = dict.fromkeys(Stage, False)
        """Whether the server complained already while the stage had a worker: then it meant another one."""
        self._stop = threading.Event()
        self._fallback = fallback
        self._counts = {stage: fallback.get(stage, 1) for stage in Stage}
        self._models: dict[Stage, str | None] = dict.fromkeys(Stage)
        # Both stages at once: each answer takes milliseconds of a batch's start, or, of a busy worker, seconds.
        first = [threading.Thread(target=self._begin, args=(stage,), daemon=True) for stage in Stage]
        for thread in first:
            thread.start()
        for thread in first:
            thread.join()
        threading.Thread(target=self._watch, name="slots", daemon=True).start()

    @property
    def models(self) -> dict[Stage, str | None]:
        """Each stage's model at the start; None where no worker said it in time.

        A worker that is busy answers once it is through; one that stays busy longer shows its model with its answer.
        """
        return dict(self._models)

    def count(self, stage: Stage) -> int:
        """Requests that may run at once."""
        return self._counts[stage]

    def given_up(self, stage: Stage) -> Unhealthy | None:
        """Why no worker of a stage comes up any more, once the server has said so for some looks in a row.

        TorchServe leaves the requests of such a stage in its queue: whoever waits for an answer waits for ever. Where
        it complained before, about another worker, this stage's have the time that they take to come back.
        """
        said = self._complaints[stage]
        looks = math.ceil(DOWN_SECONDS / self._seconds) if self._was_unhealthy[stage] else _LOOKS
        return said[-1] if len(said) >= looks else None

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _begin(self, stage: Stage) -> None:
        seen = self._refresh(stage)
        if seen is not None:
            found = self._client.describe(stage, timeout=_MODEL_SECONDS, readiness=seen)
            self._models[stage] = found.model if found else None

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            for stage in Stage:
                self._refresh(stage)

    def _refresh(self, stage: Stage) -> Readiness | None:
        """Count a stage's workers; what the management API says of them is returned, None where it cannot be asked."""
        try:
            seen = self._client.readiness(stage)
        except CloudVidError:
            return None
        readiness = seen
        if seen is None and stage not in self._fallback:  # who gave a number may know of more hosts than a proxy tells
            readiness = self._client.proxy_readiness(stage)
        if readiness is not None:  # else the last count stands
            self._counts[stage] = max(1, readiness.ready) + 1
            if readiness.ready:
                self._was_unhealthy[stage] = self._client.says_unhealthy(stage)
            said = None if readiness.ready else self._complaint(stage)
            self._complaints[stage] = [*self._complaints[stage], said] if said else []
        return seen

    def _complaint(self, stage: Stage) -> Unhealthy | None:
        try:
            self._client.check_ready(stage)
        except Unhealthy as error:
            return error
        except CloudVidError:
            pass
        return None
