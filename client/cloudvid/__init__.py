"""CloudVid: files of scene descriptions become pictures and clips, on a model server of your own.

from cloudvid import Client

with Client("http://127.0.0.1:8080") as client:
    picture = client.text_to_image("a lighthouse at dawn", width=384, height=256)
    picture.save("lighthouse.png")
    client.image_to_video(picture, fps=6).save("lighthouse.mp4")
"""

from cloudvid.async_client import AsyncClient
from cloudvid.batch.engine import render, render_all
from cloudvid.batch.events import (
    BatchEvent,
    BatchFinished,
    BatchStarted,
    ModelsKnown,
    SceneDone,
    SceneFailed,
    SceneSkipped,
    StageDone,
    StageProgress,
    StageRetried,
    StageStarted,
)
from cloudvid.batch.runner import RenderOptions
from cloudvid.batch.scenes import Scene, parse_scenes, read_scenes
from cloudvid.client import Client
from cloudvid.endpoints.answers import Generated
from cloudvid.endpoints.errors import (
    BrokenAnswer,
    Busy,
    CloudVidError,
    FolderInUse,
    InvalidInput,
    InvalidRequest,
    InvalidSceneFile,
    NoRoom,
    NotReady,
    NotScaled,
    OutOfMemory,
    OutputError,
    PictureChanged,
    Rejected,
    ServerUnavailable,
    StageError,
    StageFailed,
    Stalled,
    Unauthorized,
    Unhealthy,
    Unreachable,
    Untrusted,
    UnusableFolder,
    WorkerDied,
)
from cloudvid.server.state import StageStatus, Worker
from cloudvid_schema import __version__
from cloudvid_schema.protocol import Progress, Stage, Started

__all__ = [
    "AsyncClient",
    "BatchEvent",
    "BatchFinished",
    "BatchStarted",
    "BrokenAnswer",
    "Busy",
    "Client",
    "CloudVidError",
    "FolderInUse",
    "Generated",
    "InvalidInput",
    "InvalidRequest",
    "InvalidSceneFile",
    "ModelsKnown",
    "NoRoom",
    "NotReady",
    "NotScaled",
    "OutOfMemory",
    "OutputError",
    "PictureChanged",
    "Progress",
    "Rejected",
    "RenderOptions",
    "Scene",
    "SceneDone",
    "SceneFailed",
    "SceneSkipped",
    "ServerUnavailable",
    "Stage",
    "StageDone",
    "StageError",
    "StageFailed",
    "StageProgress",
    "StageRetried",
    "StageStarted",
    "StageStatus",
    "Stalled",
    "Started",
    "Unauthorized",
    "Unhealthy",
    "Unreachable",
    "Untrusted",
    "UnusableFolder",
    "Worker",
    "WorkerDied",
    "__version__",
    "parse_scenes",
    "read_scenes",
    "render",
    "render_all",
]
