"""What passes between a server's adapter and a stage: requests to carry out, and files or errors back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from cloudvid_schema.protocol import Description, Phase, Stage

OnStep = Callable[[Phase, int, int], None]
"""Called after each step: phase, steps done, steps in all."""
OnStart = Callable[[int, str], None]
"""Called once the request is accepted: seed, model identity."""


@dataclass(frozen=True)
class Job:
    """One request to a stage."""

    request: Any
    """A validated `TextToImageRequest` or `ImageToVideoRequest`."""
    picture: bytes | None = None
    """Of i2v: a PNG, JPEG or WebP file."""
    on_start: OnStart = lambda seed, model: None
    """Told the seed and the model before the first step."""
    on_step: OnStep = lambda phase, step, steps: None
    """Told of every step."""
    is_cancelled: Callable[[], bool] = lambda: False
    """Whether its end was asked for; called between steps, so it has to be quick."""


@dataclass(frozen=True)
class Output:
    """A finished file."""

    data: bytes
    media_type: str
    seed: int
    timings: dict[str, float]
    """Milliseconds of each phase; requests that were carried out together took them together."""
    recipe: dict[str, Any]
    """The parameters in force, the seed, the model and the versions: what makes the same file again."""
    steps: int = 0
    """Denoising steps."""
    frames: int = 1
    together: int = 1
    """How many requests were carried out in the same call of the pipeline."""
    warnings: tuple[str, ...] = ()
    """What the model ignored in the request."""
    memory_retries: int = 0
    """How often something was done again in smaller parts because memory ran out."""


class Cancelled(Exception):
    """The end of every job in a call of the pipeline was asked for."""


class WorkerUnfit(Exception):
    """The process cannot serve any more request: it has to end, so that the server starts another in its place."""


class LoadedStage(Protocol):
    """What an adapter needs of a stage."""

    stage: ClassVar[Stage]
    batches: ClassVar[bool]
    """Whether several requests can be carried out together."""
    identity: str
    """Identity of the model, `id@revision`."""
    device: str
    """`cuda:N` or `cpu`."""

    def describe(self) -> Description:
        """What this worker says of itself."""

    def gauges(self) -> Mapping[str, float]:
        """What is measured of the device now, by name."""

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> Self:
        """Load the model that the settings name."""

    def run(self, jobs: Sequence[Job]) -> list[Output | Exception]:
        """Carry out some requests, each with its own outcome.

        Raises:
            WorkerUnfit: the process has to end.
        """
