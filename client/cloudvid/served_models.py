"""Which model each stage has at a batch's start.

A worker that is busy answers once it is through; one that stays busy longer shows its model with its answer.
"""

import threading

from cloudvid.client import Client
from cloudvid_schema.protocol import Stage

_SECONDS = 30.0


class ServedModels:
    """Asks both stages at once, from now on.

    Args:
        client: whom to ask.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._found: dict[Stage, str | None] = dict.fromkeys(Stage)
        self._asking = [threading.Thread(target=self._ask, args=(stage,), daemon=True) for stage in Stage]
        for thread in self._asking:
            thread.start()

    def known(self) -> dict[Stage, str | None]:
        """Each stage's model, or None where no worker said it in time."""
        for thread in self._asking:
            thread.join()
        return self._found

    def _ask(self, stage: Stage) -> None:
        found = self._client.describe(stage, timeout=_SECONDS)
        self._found[stage] = found.model if found else None
