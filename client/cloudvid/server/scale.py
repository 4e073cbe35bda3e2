"""Gives a stage another number of workers, and explains what happened if they fail to start.

TorchServe answers at once and then tries by itself: a worker that fails to load is restarted for five minutes and then
given up, after which `/ping` answers 500 for the whole server. So this module undoes a change that fails.
"""

from collections import defaultdict
from collections.abc import Callable

from cloudvid.endpoints.errors import InvalidRequest, NotScaled
from cloudvid.server.local import last_error, worker_log
from cloudvid.server.server import Server
from cloudvid.server.state import StageStatus, Worker
from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import Stage

_POLL_SECONDS = 1.0  # on a GPU every look runs nvidia-smi for each worker
_DEATHS = 2  # of one worker before it was ready; the reason will not change with the tenth


def scale(
    server: Server,
    stage: Stage,
    workers: int,
    *,
    max_workers: int | None = None,
    timeout: float = 600.0,
    on_status: Callable[[StageStatus], None] = lambda seen: None,
) -> StageStatus:
    """Give a stage so many workers and wait until all of them are ready.

    Args:
        workers: how many; 0 stops the stage, whose requests then wait or are refused as busy.
        max_workers: the new upper limit of this number; default: unchanged.
        timeout: seconds.
        on_status: called with the state at every look.

    Raises:
        InvalidRequest: more than the stage may have; nothing was changed.
        NotScaled: they fail to start, and the change was undone; or they are merely slow, and it was not.
        ServerUnavailable: the management API cannot be asked.
    """
    before = server.reach_management(stage)
    most = before.max_workers if max_workers is None else max_workers
    if not 0 <= workers <= most:
        rule = f"must be 0 to {most}, which is maxWorkers of {stage} (--max-workers changes it)"
        raise InvalidRequest([Fault("workers", rule, workers)])
    log = worker_log(server.key_file)
    log_size = log.stat().st_size if log else 0
    kept = min(workers, len(before.workers))
    if server.is_unhealthy(stage):
        # A worker that was given up still counts and is never restarted: it has to go before another one comes.
        first_dead = next((at for at, worker in enumerate(before.workers) if worker.state != "ready"), kept)
        kept = min(kept, first_dead)
    _set(server, stage, workers, most, kept=kept, existing=len(before.workers))
    pids = defaultdict[str, list[int]](list)
    began = server.clock()
    while True:
        seen = server.manage(stage)
        on_status(seen)
        if seen.ready == workers == len(seen.workers):
            return seen
        failing = [worker for worker in seen.workers if _deaths(worker, pids[worker.id]) >= _DEATHS]
        if failing:
            reason = last_error(log, stage, failing[0].id, log_size)
            known = reason or "see the server's log"
            text = f"worker {failing[0].id} of {stage} died {_DEATHS} times while loading: {known}\n{_remedy(reason)}"
            if kept < workers:
                _set(server, stage, kept, most, kept=kept, existing=len(seen.workers))
                seen = server.manage(stage)
                text += f"\n{stage} is back to {kept} worker{'s' if kept != 1 else ''}"
            raise NotScaled(text, seen)
        if server.clock() - began >= timeout:
            text = f"{stage} has {seen.ready} of {workers} workers ready after {timeout:g} s"
            raise NotScaled(f"{text}; the change was not undone: follow it with `cloudvid ps`", seen)
        server.sleep(_POLL_SECONDS)


def _set(server: Server, stage: Stage, workers: int, most: int, *, kept: int, existing: int) -> None:
    """Request a number of workers after stopping all but the first `kept`, which briefly needs a lower limit."""
    try:
        if kept < existing:
            server.set_workers(stage, kept, kept)
    finally:  # the limit must not stay low, whatever interrupts this
        server.set_workers(stage, workers, most)


def _remedy(reason: str | None) -> str:
    if reason is None:
        return "if the log shows no error either, it was killed, perhaps for lack of memory (see `dmesg`)"
    if "OutOfMemory" in reason:
        return "its GPU is full: another worker needs another GPU, or a smaller model or precision"
    if "MemoryError" in reason:
        return "this machine is out of memory: another worker needs as much memory as the first"
    return "fix this, then scale again"


def _deaths(worker: Worker, pids: list[int]) -> int:
    """How often a worker's process has ended before the worker was ready; its process ids are collected in `pids`."""
    if worker.state == "ready":
        pids.clear()
    elif worker.pid is not None and worker.pid not in pids:
        pids.append(worker.pid)
    return len(pids) - (worker.state != "dead")  # all processes but the last have ended
