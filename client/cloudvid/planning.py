"""What a run would do, without doing it: each stage's reason, the steps, and the time that the server's own
measurements make of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudvid.decisions import entry_of, file_name, reason_to_run, request_of
from cloudvid.manifest import read_records
from cloudvid.outputs import DISK, Disk
from cloudvid.room import MARGIN, most_bytes
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import Description, ImageToVideoRequest, Request, Stage
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size
from cloudvid_schema.vocabulary import vocabulary_warnings


@dataclass(frozen=True)
class StagePlan:
    """What would be done about one stage of a scene."""

    scene: str
    stage: Stage
    reason: str | None
    """Why it would run; None where its file is there, whole and as asked for."""
    steps: int
    """Denoising steps that it would take."""
    seconds: float | None
    """What they would take on one worker; None where the server has not measured yet, or cannot be asked."""


@dataclass
class Plan:
    """What a run would do."""

    stages: list[StagePlan] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return sum(stage.steps for stage in self.stages)

    def seconds(self, workers: Mapping[Stage, int]) -> float | None:
        """The time of a run whose stages work at once, so that the slower one decides; None where it is not known."""
        totals = dict.fromkeys(Stage, 0.0)
        for plan in self.stages:
            if plan.reason is not None:
                if plan.seconds is None:
                    return None
                totals[plan.stage] += plan.seconds
        return max(totals[stage] / max(1, workers.get(stage, 1)) for stage in Stage)


def make_plan(
    scenes: Sequence[Scene],
    folder: Path,
    descriptions: Mapping[Stage, Description | None],
    *,
    embed_recipe: bool = True,
    force: bool = False,
    disk: Disk = DISK,
) -> Plan:
    """Look at every scene as a run would.

    Args:
        scenes: what would be made.
        folder: the output folder; it is only read.
        descriptions: what the endpoints say of themselves, as far as they can be asked.
        embed_recipe: as in `RenderOptions`.
        force: as in `RenderOptions`.
        disk: where the folder is.

    Raises:
        UnusableFolder: the manifest is there but cannot be read.
    """
    records, _ = read_records(folder)
    plan = Plan()
    most = 0
    painter = descriptions.get(Stage.T2I)
    known = None if painter is None or painter.vocabulary is None else frozenset(painter.vocabulary)
    for scene in scenes:
        record = records.get(scene.id)
        drawn = entry_of(record, Stage.T2I)
        is_new_picture = False
        for stage in Stage:
            request = request_of(scene, stage, embed_recipe)
            description = descriptions.get(stage)
            picture = drawn.sha256 if drawn and stage is Stage.I2V else None
            model = description.model if description else None
            reason = reason_to_run(
                request, file_name(scene, stage), entry_of(record, stage), folder, model=model, picture_sha256=picture
            )
            if reason is None and is_new_picture:
                reason = "picture changed"
            # A picture that is merely missing or damaged comes out the same: its clip stays.
            is_new_picture = stage is Stage.T2I and reason not in (None, "file missing", "file damaged")
            reason = "forced" if force else reason
            steps = request.num_inference_steps if reason else 0
            seconds = _seconds(scene, request, description) if reason else 0.0
            plan.stages.append(StagePlan(scene.id, stage, reason, steps, seconds))
            most += most_bytes(request, scene.t2i_request()) if reason else 0
        plan.warnings += _size_warnings(scene)
        if known is not None:
            plan.warnings += [f"{scene.id}: {text}" for text in vocabulary_warnings(scene.t2i_request(), known)]
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = disk.free(there)
    if free is not None and most and free < most + MARGIN:
        plan.warnings.append(
            f"{folder} has room for {free:,} bytes; the files take {most:,} at most: a run stops before it is full"
        )
    return plan


def _seconds(scene: Scene, request: Request, description: Description | None) -> float | None:
    if description is None or not {"denoise", "decode"} <= description.seconds.keys():
        return None
    width, height = scene.t2i_params.width, scene.t2i_params.height
    frames = 1
    if isinstance(request, ImageToVideoRequest):
        (width, height), _ = clip_size((width, height), request.width, request.height)
        frames = request.num_frames or description.num_frames or DEFAULT_FRAMES
    megapixels = width * height * frames / 1e6
    measured = description.seconds
    return megapixels * (measured["denoise"] * request.num_inference_steps + measured["decode"])


def _size_warnings(scene: Scene) -> list[str]:
    """Where the clip will not show the picture as it is."""
    picture = scene.t2i_params.width, scene.t2i_params.height
    clip = scene.i2v_params
    size, faults = clip_size(picture, clip.width, clip.height)
    if faults:
        return [f"{scene.id}: i2v_params.{fault}" for fault in faults]
    if size == picture:
        return []
    sizes = f"the picture is {picture[0]}×{picture[1]}, the clip {size[0]}×{size[1]}"
    same_aspect = picture[0] * size[1] == picture[1] * size[0]
    return [f"{scene.id}: {sizes}: it will be {'resized' if same_aspect else _VERBS[clip.fit]}"]


_VERBS = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}
