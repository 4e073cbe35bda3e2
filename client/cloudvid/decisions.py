"""What of a scene is to be made, and why: the same rules for `run` and for `plan`."""

from pathlib import Path

from cloudvid.manifest import Entry, Record, file_digest, request_digest
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import ImageToVideoRequest, Request, Stage, TextToImageRequest


def request_of(scene: Scene, stage: Stage, embed_recipe: bool) -> TextToImageRequest | ImageToVideoRequest:
    """A scene's request of one stage."""
    request: Request = scene.t2i_request() if stage is Stage.T2I else scene.i2v_request()
    return request.model_copy(update={"embed_recipe": embed_recipe})


def file_name(scene: Scene, stage: Stage) -> str:
    """Name of the file that a stage makes of a scene."""
    return scene.picture_name if stage is Stage.T2I else scene.video_name


def reason_to_run(
    request: Request,
    name: str,
    entry: Entry | None,
    folder: Path,
    *,
    model: str | None,
    picture_sha256: str | None = None,
) -> str | None:
    """Why a stage has to run, or None where its file is there, whole and as asked for.

    Args:
        request: what is asked for.
        name: of the stage's file.
        entry: what the manifest knows of the stage.
        folder: where the file lies.
        model: the model that would make it, where it is known.
        picture_sha256: of a clip, the picture that it would be made from.
    """
    if entry is None or entry.file != name:  # a name of its own making is no file of ours
        return "new"
    if entry.request_sha256 != request_digest(request):
        return "parameters changed"
    if model is not None and entry.model != model:
        return "model changed"
    if picture_sha256 is not None and entry.picture_sha256 != picture_sha256:
        return "picture changed"
    digest = file_digest(folder / entry.file)
    if digest is None:
        return "file missing"
    return "file damaged" if digest != entry.sha256 else None


def entry_of(record: Record | None, stage: Stage) -> Entry | None:
    """What a record knows of a stage."""
    return record.entry(stage) if record else None
