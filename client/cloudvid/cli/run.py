"""The command `run`."""

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cloudvid.batch.engine import render
from cloudvid.batch.events import BatchEvent, BatchFinished, ModelsKnown
from cloudvid.batch.manifest import scenes_beside
from cloudvid.batch.runner import RenderOptions
from cloudvid.batch.scenes import read_scenes
from cloudvid.cli.options import LeaveRunning, Only, OutputDir, SceneFile, check_only, scene_path, takes_client
from cloudvid.cli.status import said_once
from cloudvid.cli.views import JsonView, LiveView, PlainView, QuietView, View
from cloudvid.client import Client
from cloudvid.endpoints.errors import CloudVidError, UnusableFolder
from cloudvid_schema.processes import interrupts
from cloudvid_schema.protocol import Stage

_MANY = 64
_BUSY_SECONDS = 3.0
_BUSY = "waiting: all workers are busy; their models will be reported once one is free"
_SILENT_SECONDS = 10.0  # a server that was started with the run, as by `make run`, is usually ready in this time


@takes_client
def run(
    client: Client,
    *,
    scenes: SceneFile = None,
    output_dir: OutputDir = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="Make everything again, including finished files.")] = False,
    only: Only = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first scene that fails.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="How often to resend a request.")] = 4,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for a busy or absent server.")] = 900.0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life after which a request has failed.")
    ] = 3600.0,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that is not ready.")] = 0.0,
    t2i_concurrency: Annotated[
        int | None, typer.Option(min=1, max=_MANY, help="Parallel picture requests if the workers cannot be counted.")
    ] = None,
    i2v_concurrency: Annotated[
        int | None, typer.Option(min=1, max=_MANY, help="Parallel clip requests if the workers cannot be counted.")
    ] = None,
    leave_running: LeaveRunning = False,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Whether to store the recipe in each file.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the paths of the files.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print events as JSON lines; see docs/events.schema.json.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json-file", hidden=True)] = None,
) -> None:
    """Make every scene's picture and clip; resume an earlier run."""
    if scenes and json_file:
        raise typer.BadParameter("name one file of scenes", param_hint="SCENES")
    batch = read_scenes(scene_path(scenes or json_file))
    check_only(only, batch)
    concurrency = {Stage.T2I: t2i_concurrency, Stage.I2V: i2v_concurrency}
    options = RenderOptions(
        force=force,
        only=only or (),
        fail_fast=fail_fast,
        retries=retries,
        patience=patience,
        leave_running=leave_running,
        embed_recipe=metadata,
        concurrency={stage: count for stage, count in concurrency.items() if count},
    )
    client.timeout = timeout
    try:
        with interrupts():
            client.wait_until_ready(timeout=wait, on_wait=(lambda error: None) if quiet else said_once(_SILENT_SECONDS))
    except KeyboardInterrupt:
        print(f"interrupted before the first scene; continue with\n  {resume_command(sys.argv)}", file=sys.stderr)
        raise
    if not quiet and (note := scenes_beside(output_dir, [scene.id for scene in batch])):
        print(f"note: {note}", file=sys.stderr)
    late = threading.Timer(_BUSY_SECONDS, print, (_BUSY,), {"file": sys.stderr, "flush": True})
    if not quiet:
        late.start()
    events = render(batch, client, output_dir, options)
    raise typer.Exit(_render(events, _view(quiet, json), on_models=late.cancel))


def _view(quiet: bool, json: bool) -> View:
    if json:
        return JsonView(sys.stderr)
    if quiet:
        return QuietView(sys.stdout)
    console = Console()
    if console.is_terminal:
        return LiveView(console)
    return PlainView(sys.stdout, stamp=lambda: time.strftime("%H:%M:%S  "))


def _render(events: Generator[BatchEvent, None, None], view: View, on_models: Callable[[], None]) -> int:
    """Show a batch's events; the exit code."""
    again = f"\n  {resume_command(sys.argv)}"
    finished: BatchEvent | None = None
    try:
        with interrupts():
            for finished in events:
                if isinstance(finished, ModelsKnown):
                    on_models()
                view.show(finished)
    except KeyboardInterrupt:
        # If the interrupt came while an event was shown, the batch does not know of it yet.
        with contextlib.suppress(KeyboardInterrupt, StopIteration):
            view.show(events.throw(KeyboardInterrupt()))
        view.close()
        print(f"interrupted; continue with{again}", file=sys.stderr)
        return 130
    except CloudVidError as error:
        view.close()
        if not isinstance(error, UnusableFolder):
            print(f"continue with{again}", file=sys.stderr)
        raise
    finally:
        on_models()
        view.close()
    if isinstance(finished, BatchFinished) and finished.failed + finished.cancelled:
        which = "failed" if finished.failed else "cancelled"
        print(f"try the {which} scenes again with{again}", file=sys.stderr)
        return 1
    return 0


def resume_command(argv: list[str]) -> str:
    """The command that continues where this one stopped: the same, without its token and without `--force`."""
    words = ["cloudvid"]
    arguments = iter(argv[1:])
    for word in arguments:
        if word == "--token":
            next(arguments, None)
        elif word != "--force" and not word.startswith("--token="):
            words.append(word)
    return shlex.join(words)
