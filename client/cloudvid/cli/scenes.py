"""Commands on scene files that make nothing: validate, plan, gallery, init, schema."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from cloudvid.batch.gallery import PAGE, Gallery
from cloudvid.batch.manifest import Record, read_records, scenes_beside
from cloudvid.batch.plan import make_plan
from cloudvid.batch.progress import SceneProgress
from cloudvid.batch.scenes import EXAMPLE, read_scenes, scene_schema
from cloudvid.cli.options import SCENES, Only, OutputDir, SceneFile, check_only, scene_path, takes_client
from cloudvid.cli.status import look_at
from cloudvid.client import Client
from cloudvid.endpoints.answers import writing
from cloudvid.endpoints.errors import CloudVidError
from cloudvid.server.state import StageStatus
from cloudvid_schema.files import write_file
from cloudvid_schema.protocol import Stage

_PATIENCE_SECONDS = 10.0


def validate(scenes: SceneFile = None) -> None:
    """Check a scene file; list every mistake and where it is."""
    path = scene_path(scenes)
    count = len(read_scenes(path))
    print(f"{path}: {count} scene{'s' if count != 1 else ''}, no faults")


@takes_client
def plan(
    client: Client,
    *,
    scenes: SceneFile = None,
    output_dir: OutputDir = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="As if `run --force`.")] = False,
    only: Only = None,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="As for `run`.")] = True,
) -> None:
    """Show what a run would make, why, and how long it would take."""
    everything = read_scenes(scene_path(scenes))
    check_only(only, everything)
    batch = [scene for scene in everything if not only or scene.id in only]
    found = look_at(client, Stage, _PATIENCE_SECONDS)
    seen = {stage: status for stage, status in found.items() if isinstance(status, StageStatus)}
    descriptions = {stage: status.description for stage, status in seen.items()}
    workers = {stage: status.ready for stage, status in seen.items()}
    made = make_plan(batch, output_dir, descriptions, embed_recipe=metadata, force=force, workers=workers)
    width = max(len(scene.id) for scene in batch)
    for stage in made.stages:
        changed = f" ({', '.join(stage.changed)})" if stage.changed else ""
        what = f"run: {stage.reason}{changed}, {stage.steps} steps" if stage.reason else "skip: there and intact"
        print(f"{stage.scene:<{width}}  {stage.stage}  {what}")
    if note := scenes_beside(output_dir, [scene.id for scene in everything]):
        print(f"note: {note}")
    for warning in made.warnings:
        print(f"warning: {warning}")
    for refusal in made.refused:
        print(f"refused: {refusal}")
    running = sum(stage.reason is not None for stage in made.stages)
    text = f"{running} of {len(made.stages)} files to make, {made.steps} steps"
    if made.seconds is None:
        errors = [str(error) for error in found.values() if isinstance(error, CloudVidError)]
        text += f"; no estimate: {'; '.join([*errors[:1], *_lacks(seen)])}"  # those of one server's stages are alike
    elif running:
        text += f"; about {made.seconds:.0f} s at the server's own pace"
    print(text)
    if made.refused:
        raise typer.Exit(2)


def _lacks(seen: Mapping[Stage, StageStatus]) -> Iterator[str]:
    """What keeps stages from saying how fast they are."""
    unmeasured: list[str] = []
    for stage, status in seen.items():
        if not status.ready:
            yield f"{stage} has 0 of {len(status.workers)} workers ready"
        elif status.description is None:
            yield f"the workers of {stage} are all busy"
        elif not status.description.seconds:
            unmeasured.append(stage)
    if unmeasured:
        yield f"nothing has been measured yet for {' and '.join(unmeasured)}; a first request changes that"


def gallery(scenes: SceneFile = None, output_dir: OutputDir = Path("output")) -> None:
    """Rewrite the output folder's index.html from its manifest."""
    batch = [SceneProgress.of(scene, embed_recipe=True) for scene in read_scenes(scene_path(scenes))]
    if not output_dir.is_dir():
        raise typer.BadParameter(f"{output_dir} is not a folder", param_hint="--output-dir")
    if note := scenes_beside(output_dir, [each.scene.id for each in batch]):
        print(f"note: {note}", file=sys.stderr)
    records, _ = read_records(output_dir)
    page = Gallery(batch, lambda scene: records.get(scene) or Record(id=scene)).page()
    with writing(output_dir / PAGE):
        print(write_file(output_dir / PAGE, page))


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = SCENES,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write an example scene file to begin with."""
    if path.exists() and not force:
        raise typer.BadParameter(f"{path} is there already; --force replaces it", param_hint="PATH")
    with writing(path):
        write_file(path, EXAMPLE.encode())
    print(f"{path} written; `cloudvid run {path}` makes it, `cloudvid schema` helps an editor complete it")


def schema() -> None:
    """Print the JSON Schema of scene files."""
    print(json.dumps(scene_schema(), indent=2))
