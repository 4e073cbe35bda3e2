"""The state of a stage: its workers, queue, model and health. Everything that looks at a server sees this."""

import re
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, computed_field

from cloudvid_schema.protocol import Description, Stage


class Worker(BaseModel, frozen=True):
    """A process that serves a stage."""

    id: str
    state: Literal["ready", "loading", "dead"]
    """`dead` is only known if the server runs on this machine: TorchServe reports every worker that is not ready as
    UNLOADING, whether it is loading, has died, or was given up."""
    pid: int | None = None
    """None before the process has started."""
    gpu: int | None = None
    """Index of its GPU; None on a CPU."""
    memory: int | None = None
    """Resident bytes; on another machine, TorchServe's last measurement, if any."""
    gpu_memory: int | None = None
    """Bytes in use on its GPU, by all processes."""
    reported: str = Field("", exclude=True)
    """TorchServe's own word for its state; empty if a proxy counted it."""


class StageStatus(BaseModel, frozen=True):
    """The state of a stage at one moment."""

    stage: Stage
    server: str
    """Address of its management API."""
    version: str = ""
    """Version of the model archive, which is that of the CloudVid that built it."""
    workers: tuple[Worker, ...] = ()
    min_workers: int = 0
    """Number of workers that the stage was scaled to."""
    max_workers: int = 0
    """Number of workers that it may be scaled to."""
    queue: int = 0
    """Requests that wait for a worker, without those in progress."""
    queue_left: int = 0
    """How many more requests fit into the queue."""
    description: Description | None = None
    """A worker's last description of itself; None if no worker has been ready and free so far."""
    busy: bool = False
    """Whether all workers were busy when one was asked for its description."""
    restarts: int | None = None
    """How often workers were started again since the server's start; None if it is not known."""
    last_restart: float | None = None
    """Unix time of the last of them."""
    unhealthy: bool = False
    """Whether the server reports that it has given up a worker (of any stage)."""
    counted_by: Literal["management", "proxy", "nothing"] = Field("management", exclude=True)
    """Where the workers were counted; a proxy's `/ready` knows their states only, and those of one host."""
    ping: int = Field(200, exclude=True)
    """Status of `/ping`: 200 even while workers load, 500 once the server has given one up."""
    ping_text: str = Field("", exclude=True)
    """The same with the answer's own words, e.g. `503 ServerUnavailable: the model server is not up`."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ready(self) -> int:
        """Number of workers that take requests."""
        return sum(worker.state == "ready" for worker in self.workers)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loading(self) -> int:
        """Number of workers that are loading, or whose state cannot be seen from here."""
        return sum(worker.state == "loading" for worker in self.workers)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dead(self) -> int:
        """Number of workers whose process has ended."""
        return sum(worker.state == "dead" for worker in self.workers)

    @property
    def restarts_text(self) -> str:
        """How often workers were restarted, and when last; for a stage where one was."""
        last = datetime.fromtimestamp(self.last_restart or 0)
        times = f"{self.restarts} time{'s' if self.restarts != 1 else ''}"
        return (
            f"a worker that had died was restarted {times} since the server's start, last at {last:%Y-%m-%d %H:%M:%S}"
        )


def read_status(stage: Stage, server: str, document: dict[str, Any]) -> StageStatus:
    """A stage as TorchServe's `GET /models/{stage}` describes it.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: the document describes something else.
    """
    queue = document.get("jobQueueStatus", {})
    return StageStatus(
        stage=stage,
        server=server,
        version=document.get("modelVersion", ""),
        workers=tuple(map(_worker, document["workers"])),
        min_workers=document.get("minWorkers", 0),
        max_workers=document.get("maxWorkers", 0),
        queue=queue.get("pendingRequests", 0),
        queue_left=queue.get("remainingCapacity", 0),
    )


_GPU = re.compile(r"gpuId::(?P<gpu>\d+) ")
_GPU_MEMORY = re.compile(r"memory\.used \[MiB\]::(?P<mebibytes>\d+) MiB")


def _worker(reported: dict[str, Any]) -> Worker:
    usage = reported.get("gpuUsage", "")  # gpuId::0 utilization.gpu [%]::7 % ... memory.used [MiB]::5120 MiB
    gpu, memory = _GPU.search(usage), _GPU_MEMORY.search(usage)
    pid, resident = reported.get("pid", -1), reported.get("memoryUsage", 0)
    return Worker(
        id=reported.get("id", ""),
        state="ready" if reported["status"] == "READY" else "loading",
        reported=reported["status"],
        pid=pid if pid > 0 else None,
        gpu=int(gpu["gpu"]) if gpu else None,
        memory=resident if resident > 0 else None,
        gpu_memory=int(memory["mebibytes"]) * 2**20 if memory else None,
    )
