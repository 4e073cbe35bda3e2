"""What a run would do: why each stage would run, its steps, and the time according to the server's own measurements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudvid.batch.estimate import Estimate, Task
from cloudvid.batch.manifest import Record, read_records
from cloudvid.batch.progress import Asked
from cloudvid.batch.scenes import Scene
from cloudvid.batch.store import MARGIN, most_bytes, pixels
from cloudvid_schema.files import DISK, Disk
from cloudvid_schema.limits import over_limits
from cloudvid_schema.protocol import Description, Stage
from cloudvid_schema.sizes import DEFAULT_FRAMES, clip_size
from cloudvid_schema.vocabulary import length_warnings, vocabulary_warnings


@dataclass(frozen=True)
class StagePlan:
    """What would happen to one stage of a scene."""

    scene: str
    stage: Stage
    reason: str | None
    """Why it would run; None if its file exists, intact and as requested."""
    steps: int
    """Number of denoising steps."""
    changed: tuple[str, ...] = ()
    """Names of the parameters that differ from those of the existing file, numbers with both values."""


@dataclass
class Plan:
    """What a run would do."""

    stages: list[StagePlan] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What the server would refuse, and why."""
    seconds: float | None = None
    """Duration of the run; None if the server has measured nothing yet or cannot be asked."""

    @property
    def steps(self) -> int:
        """Number of denoising steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def reasons(
    asked: Mapping[Stage, Asked],
    record: Record,
    folder: Path,
    models: Mapping[Stage, str | None],
    *,
    force: bool = False,
    is_quick: bool = False,
) -> dict[Stage, str | None]:
    """Why each stage of a scene would run; None if its file exists, intact and as requested.

    Args:
        asked: the scene's requests.
        record: the scene's line in the manifest.
        folder: the output folder.
        models: identity of each stage's model, if known.
        force: as in `RenderOptions`.
        is_quick: trust the record, without a look at the files.
    """
    picture, clip = (asked[stage].reason_to_run(record, folder, models.get(stage), is_quick) for stage in Stage)
    # A picture that is only missing or damaged will be the same again, so its clip stays.
    if clip is None and picture not in (None, "file missing", "file damaged"):
        clip = "picture changed"
    return dict.fromkeys(Stage, "forced") if force else {Stage.T2I: picture, Stage.I2V: clip}


def refusals(wanted: Iterable[Asked], described: Mapping[Stage, Description | None]) -> dict[Stage, str]:
    """Why the server would refuse some requests, by stage: they are over its operator's limits."""
    refused = {}
    for asked in wanted:
        stage, told, request = asked.stage, described.get(asked.stage), asked.request
        frames = getattr(request, "num_frames", 1) or (told and told.num_frames) or DEFAULT_FRAMES
        faults = over_limits(
            told.limits if told else {},
            pixels=pixels(request, asked.scene.t2i_params, frames) // frames,
            steps=request.num_inference_steps,
            frames=frames,
            prompt=getattr(request, "prompt", ""),
        )
        if faults:
            refused[stage] = "; ".join(f"{stage}_params.{fault}" for fault in faults)
    return refused


def make_plan(
    scenes: Sequence[Scene],
    folder: Path,
    descriptions: Mapping[Stage, Description | None],
    *,
    embed_recipe: bool = True,
    force: bool = False,
    workers: Mapping[Stage, int] | None = None,
    disk: Disk = DISK,
) -> Plan:
    """Look at every scene as a run would.

    Args:
        folder: the output folder, which is only read.
        descriptions: the stages' workers' descriptions, as far as known.
        embed_recipe, force: as in `RenderOptions`.
        workers: how many are ready; default: one of each stage.

    Raises:
        UnusableFolder: the manifest exists but cannot be read.
    """
    records, _ = read_records(folder)
    plan = Plan()
    most = 0
    painter = descriptions.get(Stage.T2I)
    known = None if painter is None or painter.vocabulary is None else frozenset(painter.vocabulary)
    models = {stage: description.model if description else None for stage, description in descriptions.items()}
    tasks = []
    for scene in scenes:
        record = records.get(scene.id) or Record(id=scene.id)
        asked = {stage: Asked.of(scene, stage, embed_recipe) for stage in Stage}
        why = reasons(asked, record, folder, models, force=force)
        refused = refusals((asked[stage] for stage in Stage if why[stage]), descriptions)
        plan.refused += [f"{scene.id}: {text}" for text in refused.values()]
        for stage, reason in why.items():
            request = asked[stage].request
            steps = request.num_inference_steps if reason else 0
            changed = asked[stage].changes(record) if reason == "parameters changed" else ()
            plan.stages.append(StagePlan(scene.id, stage, reason, steps, changed))
            if reason:
                tasks.append(Task.of(scene, request, descriptions.get(stage)))
                most += most_bytes(request, scene.t2i_params)
        plan.warnings += _size_warnings(scene)
        plan.warnings += [f"{scene.id}: {text}" for text in length_warnings(scene.t2i_request(), painter)]
        if known is not None:
            plan.warnings += [f"{scene.id}: {text}" for text in vocabulary_warnings(scene.t2i_request(), known)]
    plan.seconds = Estimate(tasks, descriptions, workers or {}).seconds()
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = disk.free(existing)
    if free is not None and most and free < most + MARGIN:
        text = f"{folder} has {free:,} bytes left, and the files may need {most + MARGIN:,}"
        plan.warnings.append(f"{text}: a run stops before the disk is full")
    return plan


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
