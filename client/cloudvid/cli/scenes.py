"""Commands on scene files that make nothing: validate, plan, init, schema."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cloudvid.cli.options import OutputDir, SceneFile, takes_client
from cloudvid.client import Client
from cloudvid.errors import OutputError
from cloudvid.gallery import write_gallery
from cloudvid.manifest import read_records
from cloudvid.outputs import DISK, write_file
from cloudvid.planning import make_plan
from cloudvid.scenes import EXAMPLE, Scene, read_scenes, scene_schema
from cloudvid_schema.protocol import Stage


def _read(scenes: Path | None) -> list[Scene]:
    if scenes is None:
        raise typer.BadParameter("name a file of scenes", param_hint="SCENES")
    return read_scenes(scenes)


def validate(scenes: SceneFile = None) -> None:
    """Check a file of scenes without sending anything; every fault is shown with its place."""
    count = len(_read(scenes))
    print(f"{scenes}: {count} scene{'s' if count != 1 else ''}, no faults")


@takes_client
def plan(
    client: Client,
    scenes: SceneFile = None,
    output_dir: OutputDir = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="As if `run --force`.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="As for `run`.")] = True,
) -> None:
    """Show what a run would make and skip, and why, and how long it would take."""
    batch = _read(scenes)
    descriptions = {stage: client.describe(stage) for stage in Stage}
    made = make_plan(batch, output_dir, descriptions, embed_recipe=metadata, force=force)
    width = max(len(scene.id) for scene in batch)
    for stage in made.stages:
        what = f"run: {stage.reason}, {stage.steps} steps" if stage.reason else "skip: there and intact"
        print(f"{stage.scene:<{width}}  {stage.stage}  {what}")
    for warning in made.warnings:
        print(f"note: {warning}")
    counts = [client.readiness(stage) for stage in Stage] if any(descriptions.values()) else []
    seconds = made.seconds({count.stage: count.ready for count in counts if count})
    running = sum(stage.reason is not None for stage in made.stages)
    text = f"{running} of {len(made.stages)} files to make, {made.steps} steps"
    if seconds is None:
        text += "; no estimate: the server cannot be asked, or has measured nothing yet"
    elif running:
        text += f"; about {seconds:.0f} s at the server's own pace"
    print(text)


def gallery(scenes: SceneFile = None, output_dir: OutputDir = Path("output")) -> None:
    """Write the output folder's index.html anew, from its manifest."""
    batch = _read(scenes)
    print(write_gallery(output_dir, batch, read_records(output_dir)[0], {}, DISK))


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("scenes.json"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write an example scene file to begin with."""
    if path.exists() and not force:
        raise OutputError(f"{path} is there already; --force replaces it")
    write_file(path, EXAMPLE.encode())
    print(f"{path} written; `cloudvid run {path}` makes it, `cloudvid schema` helps an editor complete it")


def schema() -> None:
    """Print the JSON Schema of scene files."""
    print(json.dumps(scene_schema(), indent=2))
