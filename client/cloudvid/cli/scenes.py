"""Commands on scene files: run, validate."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cloudvid.batch import FileWritten, render
from cloudvid.cli.options import takes_client
from cloudvid.client import Client
from cloudvid.scenes import read_scenes
from cloudvid_schema.protocol import TINY_MODEL

SceneFile = Annotated[Path | None, typer.Argument(metavar="SCENES", help="JSON file of scenes.", show_default=False)]


@takes_client
def run(
    client: Client,
    scenes: SceneFile = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "--output_dir", help="Folder for the pictures and clips.")
    ] = Path("output"),
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a server that is not ready.")] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json_file", hidden=True)] = None,
) -> None:
    """Make the picture and the clip of every scene in a file."""
    path = scenes or json_file
    if path is None or (scenes and json_file):
        raise typer.BadParameter("name one file of scenes", param_hint="SCENES")
    batch = read_scenes(path)
    client.wait_until_ready(timeout=wait)
    failed, models = 0, set[str]()
    for event in render(batch, client, output_dir):
        if isinstance(event, FileWritten):
            seconds = sum(event.result.timings.values()) / 1000
            print(
                f"{event.path}  {len(event.result.data):,} bytes, {seconds:.1f} s, seed {event.result.seed}", flush=True
            )
            models.add(event.result.model)
        else:
            failed += 1
            print(f"failed: {event.scene.id}: {event.error}", file=sys.stderr, flush=True)
    if any(model.startswith(TINY_MODEL) for model in models):
        print("note: the tiny models have random weights, so these pictures are noise; PROFILE=real makes real ones")
    print(f"{len(batch) - failed} of {len(batch)} scenes done, in {output_dir}")
    if failed:
        raise typer.Exit(1)


def validate(scenes: SceneFile = None) -> None:
    """Check a file of scenes without sending anything; every fault is shown with its place."""
    if scenes is None:
        raise typer.BadParameter("name a file of scenes", param_hint="SCENES")
    count = len(read_scenes(scenes))
    print(f"{scenes}: {count} scene{'s' if count != 1 else ''}, no faults")
