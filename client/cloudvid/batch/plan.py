"""What a run would do: why each stage would run, its steps, and the time according to the server's own measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudvid.batch.manifest import Record, read_records
from cloudvid.batch.progress import Asked
from cloudvid.batch.scenes import Scene
from cloudvid.batch.store import MARGIN, most_bytes, pixels
from cloudvid_schema.files import DISK, Disk
from cloudvid_schema.protocol import Description, Request, Stage
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size
from cloudvid_schema.vocabulary import vocabulary_warnings


@dataclass(frozen=True)
class StagePlan:
    """What would happen to one stage of a scene."""

    scene: str
    stage: Stage
    reason: str | None
    """Why it would run; None if its file exists, intact and as requested."""
    steps: int
    """Number of denoising steps."""
    seconds: float | None
    """Time on one worker; None if the server has measured nothing yet or cannot be asked."""


@dataclass
class Plan:
    """What a run would do."""

    stages: list[StagePlan] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of denoising steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def seconds(self, workers: Mapping[Stage, int]) -> float | None:
        """Duration of the run, in which both stages work at once and the slower one decides; None if unknown."""
        totals = dict.fromkeys(Stage, 0.0)
        for plan in self.stages:
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
        folder: the output folder, which is only read.
        descriptions: the stages' workers' descriptions, as far as known.
        embed_recipe, force: as in `RenderOptions`.

    Raises:
        UnusableFolder: the manifest exists but cannot be read.
    """
    records, _ = read_records(folder)
    plan = Plan()
    most = 0
    painter = descriptions.get(Stage.T2I)
    known = None if painter is None or painter.vocabulary is None else frozenset(painter.vocabulary)
    for scene in scenes:
        record = records.get(scene.id) or Record(id=scene.id)
        is_new_picture = False
        for stage in Stage:
            asked, description = Asked.of(scene, stage, embed_recipe), descriptions.get(stage)
            reason = asked.reason_to_run(record, folder, description.model if description else None)
            if reason is None and is_new_picture:
                reason = "picture changed"
            # A picture that is only missing or damaged will be the same again, so its clip stays.
            is_new_picture = stage is Stage.T2I and reason not in (None, "file missing", "file damaged")
            reason = "forced" if force else reason
            steps = asked.request.num_inference_steps if reason else 0
            seconds = _seconds(scene, asked.request, description) if reason else 0.0
            plan.stages.append(StagePlan(scene.id, stage, reason, steps, seconds))
            most += most_bytes(asked.request, scene.t2i_params) if reason else 0
        plan.warnings += _size_warnings(scene)
        if known is not None:
            plan.warnings += [f"{scene.id}: {text}" for text in vocabulary_warnings(scene.t2i_request(), known)]
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = disk.free(existing)
    if free is not None and most and free < most + MARGIN:
        text = f"{folder} has {free:,} bytes left, and the files may need {most:,}: a run stops before the disk is full"
        plan.warnings.append(text)
    return plan


def _seconds(scene: Scene, request: Request, description: Description | None) -> float | None:
    if description is None or not {"denoise", "decode"} <= description.seconds.keys():
        return None
    seconds = description.seconds["denoise"] * request.num_inference_steps + description.seconds["decode"]
    return pixels(request, scene.t2i_params, description.num_frames or DEFAULT_FRAMES) / 1e6 * seconds


def _size_warnings(scene: Scene) -> list[str]:
    """Warnings if the clip will not show the whole picture at its size."""
    picture = scene.t2i_params.width, scene.t2i_params.height
    clip = scene.i2v_params
    size, faults = clip_size(picture, clip.width, clip.height)
    if faults:
        return [f"{scene.id}: i2v_params.{fault}" for fault in faults]
    if size == picture:
        return []
    same_aspect = picture[0] * size[1] == picture[1] * size[0]
    how = "resized" if same_aspect else {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[clip.fit]
    sizes = f"the picture is {picture[0]}×{picture[1]}, the clip {size[0]}×{size[1]}"
    return [f"{scene.id}: {sizes}: it will be {how}"]
