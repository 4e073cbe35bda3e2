"""The state of a stage: its workers, queue, model and health. Everything that looks at a server sees this."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

from cloudvid_schema.protocol import Description, Stage


class Worker(BaseModel):
    """A process that serves a stage."""

    model_config = ConfigDict(frozen=True)

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


class StageStatus(BaseModel):
    """The state of a stage at one moment."""

    model_config = ConfigDict(frozen=True)

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
    unhealthy: bool = False
    """Whether the server reports that it has given up a worker (of any stage)."""
    counted_by: Literal["management", "proxy", "nothing"] = Field("management", exclude=True)
    """Where the workers were counted; a proxy's `/ready` knows their states only, and those of one host."""
    ping: int = Field(200, exclude=True)
    """Status of `/ping`: 200 even while workers load, 500 once the server has given one up."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ready(self) -> int:
        """Number of workers that take requests."""
        return self._count("ready")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loading(self) -> int:
        """Number of workers that are loading, or whose state cannot be seen from here."""
        return self._count("loading")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dead(self) -> int:
        """Number of workers whose process has ended."""
        return self._count("dead")

    def _count(self, state: str) -> int:
        return sum(worker.state == state for worker in self.workers)


def read_status(stage: Stage, server: str, document: Any) -> StageStatus:
    """A stage as TorchServe's `GET /models/{stage}` describes it.

    Raises:
        ValueError: the document describes something else.
    """
    reported = _Model.model_validate(document)
    workers = (
        Worker(
            id=worker.id,
            state="ready" if worker.status == "READY" else "loading",
            pid=worker.pid if worker.pid > 0 else None,
            memory=worker.memory_usage if worker.memory_usage > 0 else None,
            **_gpu(worker.gpu_usage),
        )
        for worker in reported.workers
    )
    return StageStatus(
        stage=stage,
        server=server,
        version=reported.model_version,
        workers=tuple(workers),
        min_workers=reported.min_workers,
        max_workers=reported.max_workers,
        queue=reported.job_queue_status.pending_requests,
        queue_left=reported.job_queue_status.remaining_capacity,
    )


class _Reported(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, protected_namespaces=())


class _ReportedWorker(_Reported):
    id: str = ""
    status: str
    pid: int = -1
    memory_usage: int = 0
    gpu_usage: str = ""


class _Queue(_Reported):
    pending_requests: int = 0
    remaining_capacity: int = 0


class _Model(_Reported):
    """The parts of TorchServe's `GET /models/{stage}` that are read."""

    model_version: str = ""
    min_workers: int = 0
    max_workers: int = 0
    workers: list[_ReportedWorker]
    job_queue_status: _Queue = Field(default_factory=_Queue)


_GPU = re.compile(r"gpuId::(?P<gpu>\d+) ")
_GPU_MEMORY = re.compile(r"memory\.used \[MiB\]::(?P<mebibytes>\d+) MiB")


def _gpu(usage: str) -> dict[str, int]:
    """Parse `gpuId::0 utilization.gpu [%]::7 % ... memory.used [MiB]::5120 MiB`, TorchServe's report on a GPU."""
    gpu, memory = _GPU.search(usage), _GPU_MEMORY.search(usage)
    return ({"gpu": int(gpu["gpu"])} if gpu else {}) | (
        {"gpu_memory": int(memory["mebibytes"]) * 2**20} if memory else {}
    )
