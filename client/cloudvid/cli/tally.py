"""Counts a batch from its events, for the summary of one that is interrupted."""

import time
from collections.abc import Callable

from cloudvid.events import BatchEvent, BatchFinished, BatchStarted, SceneDone, SceneFailed, SceneSkipped, StageStarted


class Tally:
    """What happened so far.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._scenes = self._done = self._skipped = self._failed = self._requests = 0

    def take(self, event: BatchEvent) -> None:
        """Count an event."""
        match event:
            case BatchStarted():
                self._scenes = event.scenes
            case SceneDone():
                self._done += 1
            case SceneSkipped():
                self._skipped += 1
            case SceneFailed():
                self._failed += 1
            case StageStarted():
                self._requests += 1

    def finished(self, stopped: str) -> BatchFinished:
        """The summary."""
        return BatchFinished(
            scenes=self._scenes,
            done=self._done,
            skipped=self._skipped,
            failed=self._failed,
            requests=self._requests,
            seconds=round(self._clock() - self._began, 3),
            stopped=stopped,
        )
