"""How a stage gets another number of workers, and what is said where one does not come up.

TorchServe answers at once and tries on its own: a worker that fails to load is started again for five minutes, then
given up, and from then on `/ping` answers 500 for the whole server. So what does not come up is taken back here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloudvid.errors import InvalidRequest, NotScaled
from cloudvid.local_server import last_error, worker_log
from cloudvid.management import Management
from cloudvid.stage_status import StageStatus, Worker
from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import Stage

OnStatus = Callable[[StageStatus], None]
"""Told of the stage whenever it is looked at."""
_LOOK_SECONDS = 1.0  # on a GPU each look runs nvidia-smi for each worker
_DEATHS = 2  # of one worker before it was ready; the reason of the first is the reason of the tenth


def _ignore(_: StageStatus) -> None:
    """Nobody watches."""


@dataclass
class Scaling:
    """One change of a stage's number of workers.

    Args:
        management: whom to tell.
        is_unhealthy: whether the stage's server says that workers stay down for good.
        key_file: of the server, beside which its log lies.
        timeout: seconds after which to stop waiting.
        on_status: told how it goes.
        sleep: how to wait.
        clock: monotonic seconds.
    """

    management: Management
    is_unhealthy: Callable[[], bool]
    key_file: Path | None = None
    timeout: float = 600.0
    on_status: OnStatus = _ignore
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _deaths: dict[str, "_Deaths"] = field(default_factory=dict)

    def to(self, stage: Stage, workers: int, ceiling: int | None = None) -> StageStatus:
        """The stage with so many workers, all of them ready.

        Args:
            stage: which.
            workers: how many; 0 stops the stage, whose requests then wait or are refused as busy.
            ceiling: the most that the stage may be scaled to from now on; default: what it is.

        Raises:
            InvalidRequest: more than the stage may have; nothing was changed.
            NotScaled: they do not come up; what was begun is taken back, unless they are merely slow.
            ServerUnavailable: the management API cannot be asked.
        """
        before = self.management.look(stage)
        most = before.max_workers if ceiling is None else ceiling
        if not 0 <= workers <= most:
            rule = f"must be 0 to {most}, which is maxWorkers of {stage} (--max-workers sets another)"
            raise InvalidRequest([Fault("workers", rule, workers)])
        log = worker_log(self.key_file)
        log_size = log.stat().st_size if log else 0
        kept = min(workers, len(before.workers))
        if self.is_unhealthy():
            # One that was given up still counts, and is never started again: it has to go before another comes.
            alive = next((at for at, worker in enumerate(before.workers) if worker.state != "ready"), kept)
            kept = min(kept, alive)
        self._set(stage, workers, most, kept, len(before.workers))
        began = self.clock()
        while True:
            seen = self.management.look(stage)
            self.on_status(seen)
            if seen.ready == workers == len(seen.workers):
                return seen
            failing = next((worker for worker in seen.workers if self._keeps_dying(worker)), None)
            if failing:
                reason = last_error(log, stage, failing.id, log_size)
                text = f"worker {failing.id} of {stage} died {_DEATHS} times while it loaded: {reason or _WORDLESS}"
                text += f"\n{_remedy(reason)}"
                if kept < workers:
                    self._set(stage, kept, most, kept, len(seen.workers))
                    seen = self.management.look(stage)
                    text += f"\n{stage} is back to {kept} worker{'s' if kept != 1 else ''}"
                raise NotScaled(text, seen)
            if self.clock() - began >= self.timeout:
                left = "nothing was taken back: `cloudvid ps` shows how it goes on"
                text = f"{stage} has {seen.ready} of {workers} workers ready after {self.timeout:g} s; {left}"
                raise NotScaled(text, seen)
            self.sleep(_LOOK_SECONDS)

    def _set(self, stage: Stage, workers: int, most: int, kept: int, there: int) -> None:
        """Ask for so many workers after ending all but the first `kept`, which takes a lower ceiling for a moment."""
        try:
            if kept < there:
                self.management.set_workers(stage, kept, kept)
        finally:  # the ceiling must not stay low, whatever interrupts this
            self.management.set_workers(stage, workers, most)

    def _keeps_dying(self, worker: Worker) -> bool:
        deaths = self._deaths.setdefault(worker.id, _Deaths())
        deaths.take(worker)
        return deaths.count >= _DEATHS


_WORDLESS = "the reason is in the server's log"


def _remedy(reason: str | None) -> str:
    if reason is None:
        return "where the log shows no error either, it was killed: for want of memory, perhaps (`dmesg` says so)"
    if "OutOfMemory" in reason:
        return "its GPU has no room for it: a further worker needs a GPU of its own, or a smaller model or precision"
    if "MemoryError" in reason:
        return "this machine has no memory for it: a further worker needs as much again"
    return "mend that, then scale again"


class _Deaths:
    """Counts how often a worker's process came to its end before the worker was ready."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._is_dead = False

    def take(self, worker: Worker) -> None:
        """Take in what was seen of it."""
        if worker.state == "ready":
            self._pids = []
        elif worker.pid is not None and worker.pid not in self._pids:
            self._pids.append(worker.pid)
        self._is_dead = worker.state == "dead"

    @property
    def count(self) -> int:
        """Every process but the last is known to have ended."""
        return len(self._pids) - (0 if self._is_dead else 1)
