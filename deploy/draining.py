"""What a server has in hand when it is told to stop, and how it is waited for."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from cloudvid_schema.ports import EXPORTER
from cloudvid_schema.protocol import JobStatus
from deploy.renewal import current, get

_JOBS = TypeAdapter(dict[str, list[JobStatus]])
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class InHand:
    """Requests that an end of the server would lose."""

    running: Sequence[JobStatus] = ()
    waiting: int = 0

    def __bool__(self) -> bool:
        return bool(self.running or self.waiting)

    def __str__(self) -> str:
        steps = [f" {job.phase} {job.step}/{job.steps}" if job.phase else "" for job in self.running]
        names = [f"{job.id} on {job.stage}{step}" for job, step in zip(self.running, steps, strict=True)]
        listed = f" ({', '.join(names)})" if names else ""
        return f"{len(names)} in progress{listed}, {self.waiting} waiting"


def in_hand(run_dir: Path, port: int) -> InHand:
    """What a server has in hand, as its exporter tells; nothing if that does not answer."""
    keys = current(run_dir / "key_file.json")
    _, jobs = get(port + EXPORTER, "/jobs", keys.inference if keys else None)
    _, ready = get(port + EXPORTER, "/ready")
    with suppress(ValueError, LookupError, TypeError):
        listed = _JOBS.validate_json(jobs)["jobs"]
        queues = [state["pending_requests"] for state in json.loads(ready)["stages"].values() if state]
        running = [job for job in listed if job.state == "running"]
        return InHand(running, max(sum(queues), len(listed) - len(running)))
    return InHand()


def drain(
    look: Callable[[], InHand],
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> InHand:
    """Wait until a server has nothing in hand, at most so many seconds. Returns what is left."""
    began, shown = clock(), None
    while (left := look()) and clock() - began < seconds:
        if shown != (shown := ([job.id for job in left.running], left.waiting)):
            print(f"waiting up to {seconds:g} s for the server's requests: {left}", flush=True)
        sleep(_POLL_SECONDS)
    return left
