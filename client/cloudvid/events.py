"""What happens in a batch, as it happens: the events that `render` yields and `cloudvid run --json` prints."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cloudvid_schema.protocol import Stage


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class BatchStarted(_Event):
    """The folder is open and the scenes are known."""

    event: Literal["batch_started"] = "batch_started"
    scenes: int
    output_dir: str
    models: dict[Stage, str | None]
    """Identity of each stage's model; None where the server cannot be asked."""


class SceneSkipped(_Event):
    """Both files are there, whole and as asked for."""

    event: Literal["scene_skipped"] = "scene_skipped"
    scene: str


class StageStarted(_Event):
    """A request is sent."""

    event: Literal["stage_started"] = "stage_started"
    scene: str
    stage: Stage
    reason: str
    """Why the stage runs: `new`, `parameters changed`, `model changed`, `picture changed`, `file missing`,
    `file damaged`, `forced`."""
    attempt: int


class StageProgress(_Event):
    """A step is done."""

    event: Literal["stage_progress"] = "stage_progress"
    scene: str
    stage: Stage
    phase: Literal["denoise", "decode", "encode"]
    step: int
    steps: int


class StageRetried(_Event):
    """A request failed and is sent again."""

    event: Literal["stage_retried"] = "stage_retried"
    scene: str
    stage: Stage
    error: str
    """Class of the error, as in `cloudvid.errors`."""
    message: str
    wait_seconds: float


class StageDone(_Event):
    """A file is in place and on record."""

    event: Literal["stage_done"] = "stage_done"
    scene: str
    stage: Stage
    path: str
    size: int
    """Bytes."""
    sha256: str
    seed: int
    model: str
    seconds: float
    """What the server spent on it."""
    warnings: tuple[str, ...] = ()
    """What the model ignored in the request."""


class SceneDone(_Event):
    """Picture and clip are in place."""

    event: Literal["scene_done"] = "scene_done"
    scene: str


class SceneFailed(_Event):
    """A scene was given up; the others go on."""

    event: Literal["scene_failed"] = "scene_failed"
    scene: str
    stage: Stage
    error: str
    message: str


class BatchFinished(_Event):
    """The last event, whatever ended the batch."""

    event: Literal["batch_finished"] = "batch_finished"
    scenes: int
    done: int
    skipped: int
    failed: int
    requests: int
    """POSTs that were made."""
    seconds: float
    stopped: str | None = None
    """Why the batch ended before its last scene: `interrupted`, `failed` (with fail_fast), or an error's text."""


BatchEvent = Annotated[
    BatchStarted
    | SceneSkipped
    | StageStarted
    | StageProgress
    | StageRetried
    | StageDone
    | SceneDone
    | SceneFailed
    | BatchFinished,
    Field(discriminator="event"),
]
