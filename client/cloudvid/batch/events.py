"""What happens in a batch, as it happens: the events that `render` yields and `cloudvid run --json` prints."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cloudvid_schema.protocol import Phase, Stage


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    event: str


class _StageEvent(_Event):
    scene: str
    stage: Stage


class BatchStarted(_Event):
    """The first event: the folder is open and the scenes are known."""

    event: Literal["batch_started"] = "batch_started"
    scenes: int
    output_dir: str


class ModelsKnown(_Event):
    """The server was asked for its models; scenes are compared with them and started from now on."""

    event: Literal["models_known"] = "models_known"
    models: dict[Stage, str | None]
    """Identity of each stage's model; None if the server cannot be asked or its workers are busy."""
    seconds_left: float | None = None
    """Of the whole batch; None until every stage's pace is known."""


class SceneSkipped(_Event):
    """Both files exist, intact and as requested."""

    event: Literal["scene_skipped"] = "scene_skipped"
    scene: str


class StageStarted(_StageEvent):
    """A request is being sent."""

    event: Literal["stage_started"] = "stage_started"
    reason: str
    """Why the stage runs: `new`, `parameters changed`, `model changed`, `picture changed`, `file missing`,
    `file damaged`, `forced`."""
    attempt: int


class StageProgress(_StageEvent):
    """A step is done."""

    event: Literal["stage_progress"] = "stage_progress"
    phase: Phase
    step: int
    steps: int
    seconds_left: float | None = None
    """Of the whole batch."""


class StageRetried(_StageEvent):
    """A request failed and will be sent again."""

    event: Literal["stage_retried"] = "stage_retried"
    error: str
    """Class name of the error, as in `cloudvid.endpoints.errors`."""
    message: str
    wait_seconds: float
    patience: float | None = None
    """Seconds that a busy or absent server is waited for in total; None if the attempts are counted instead."""


class StageDone(_StageEvent):
    """A file is in place and on record."""

    event: Literal["stage_done"] = "stage_done"
    path: str
    size: int
    """Bytes."""
    sha256: str
    seed: int
    model: str
    seconds: float
    """Time that the server spent on it."""
    warnings: tuple[str, ...] = ()
    """What the model ignored in the request."""


class SceneDone(_Event):
    """Picture and clip are in place."""

    event: Literal["scene_done"] = "scene_done"
    scene: str


class SceneFailed(_StageEvent):
    """A scene has failed; the others continue."""

    event: Literal["scene_failed"] = "scene_failed"
    error: str
    message: str


class SceneCancelled(_StageEvent):
    """Somebody cancelled the scene's job; the others continue, and a later run makes it."""

    event: Literal["scene_cancelled"] = "scene_cancelled"


class BatchFinished(_Event):
    """The last event, whatever ended the batch."""

    event: Literal["batch_finished"] = "batch_finished"
    scenes: int
    done: int
    skipped: int
    failed: int
    cancelled: int = 0
    requests: int
    """Number of POSTs."""
    seconds: float
    stopped: str | None = None
    """Why the batch ended early: `interrupted`, `failed` (with fail_fast), or an error's text."""


BatchEvent = Annotated[
    BatchStarted
    | ModelsKnown
    | SceneSkipped
    | StageStarted
    | StageProgress
    | StageRetried
    | StageDone
    | SceneDone
    | SceneFailed
    | SceneCancelled
    | BatchFinished,
    Field(discriminator="event"),
]
