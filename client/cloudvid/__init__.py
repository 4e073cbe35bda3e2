"""CloudVid: files of scene descriptions become pictures and clips, on a model server of your own.

from cloudvid import Client

client = Client("http://127.0.0.1:8080")
picture = client.text_to_image("a lighthouse at dawn", width=768, height=512)
picture.save("lighthouse.png")
client.image_to_video(picture.data, fps=6).save("lighthouse.mp4")
"""

from cloudvid.answers import Generated
from cloudvid.batch import render
from cloudvid.client import Client
from cloudvid.errors import (
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
from cloudvid.management import Readiness
from cloudvid.render_options import RenderOptions
from cloudvid.scenes import Scene, parse_scenes, read_scenes
from cloudvid.stage_status import StageStatus, Worker
from cloudvid_schema import __version__
from cloudvid_schema.protocol import Progress, Stage, Started

__all__ = [
    "BrokenAnswer",
    "Busy",
    "Client",
    "CloudVidError",
    "FolderInUse",
    "Generated",
    "InvalidInput",
    "InvalidRequest",
    "InvalidSceneFile",
    "NoRoom",
    "NotReady",
    "NotScaled",
    "OutOfMemory",
    "OutputError",
    "Progress",
    "Readiness",
    "Rejected",
    "RenderOptions",
    "Scene",
    "ServerUnavailable",
    "Stage",
    "StageError",
    "StageFailed",
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
]
