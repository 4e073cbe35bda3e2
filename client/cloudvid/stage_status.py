"""A stage at one moment: its workers, its queue, and what a worker says of itself."""

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
    """`dead` is known where the server runs on this machine; TorchServe itself calls every worker that is not ready
    UNLOADING, whether it loads, has died, or was given up."""
    pid: int | None = None
    """None before the process has begun."""
    gpu: int | None = None
    """Number of the GPU that was dealt to it; None on a CPU."""
    memory: int | None = None
    """Resident bytes; of another machine's process as TorchServe measured it last, None before it has."""
    gpu_memory: int | None = None
    """Bytes in use on its GPU, by whomever."""


class StageStatus(BaseModel):
    """A stage at one moment."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    server: str
    """Address of its management API."""
    version: str = ""
    """Of the model archive: the CloudVid that built it."""
    workers: tuple[Worker, ...] = ()
    min_workers: int = 0
    """How many the stage was scaled to."""
    max_workers: int = 0
    """How many it may be scaled to."""
    queue: int = 0
    """Requests that wait for a worker; those that run are not counted."""
    queue_left: int = 0
    """How many more may wait; TorchServe refuses the next."""
    description: Description | None = None
    """What a worker said last of itself; None where none is ready, or all were busy whenever one was asked."""
    busy: bool = False
    """Whether every worker had a request in hand when one was asked."""
    unhealthy: bool = False
    """Whether the server says that a worker, of whichever stage, has been given up for good."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ready(self) -> int:
        """Workers that take requests."""
        return self._count("ready")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loading(self) -> int:
        """Workers that start or load, or whose fate cannot be seen from here."""
        return self._count("loading")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dead(self) -> int:
        """Workers whose process is gone."""
        return self._count("dead")

    def _count(self, state: str) -> int:
        return sum(worker.state == state for worker in self.workers)


def read_status(stage: Stage, server: str, document: Any) -> StageStatus:
    """A stage as TorchServe's `GET /models/{stage}` tells of it.

    Raises:
        ValueError: it tells of something else.
    """
    told = _Model.model_validate(document)
    workers = (
        Worker(
            id=worker.id,
            state="ready" if worker.status == "READY" else "loading",
            pid=worker.pid if worker.pid > 0 else None,
            memory=worker.memory_usage if worker.memory_usage > 0 else None,
            **_gpu(worker.gpu_usage),
        )
        for worker in told.workers
    )
    return StageStatus(
        stage=stage,
        server=server,
        version=told.model_version,
        workers=tuple(workers),
        min_workers=told.min_workers,
        max_workers=told.max_workers,
        queue=told.job_queue_status.pending_requests,
        queue_left=told.job_queue_status.remaining_capacity,
    )


class _Told(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, protected_namespaces=())


class _ToldWorker(_Told):
    id: str = ""
    status: str
    pid: int = -1
    memory_usage: int = 0
    gpu_usage: str = ""


class _Queue(_Told):
    pending_requests: int = 0
    remaining_capacity: int = 0


class _Model(_Told):
    """TorchServe's `GET /models/{stage}`, as far as it is read."""

    model_version: str = ""
    min_workers: int = 0
    max_workers: int = 0
    workers: list[_ToldWorker]
    job_queue_status: _Queue = Field(default_factory=_Queue)


_GPU = re.compile(r"gpuId::(?P<gpu>\d+) ")
_GPU_MEMORY = re.compile(r"memory\.used \[MiB\]::(?P<mebibytes>\d+) MiB")


def _gpu(usage: str) -> dict[str, int]:
    """What TorchServe says of a worker's GPU: `gpuId::0 utilization.gpu [%]::7 % ... memory.used [MiB]::5120 MiB`."""
    gpu, memory = _GPU.search(usage), _GPU_MEMORY.search(usage)
    return ({"gpu": int(gpu["gpu"])} if gpu else {}) | (
        {"gpu_memory": int(memory["mebibytes"]) * 2**20} if memory else {}
    )
