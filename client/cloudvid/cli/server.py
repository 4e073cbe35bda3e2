"""Commands on the server: ps, scale, wait."""

import json as json_format
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cloudvid.cli.options import Json, takes_client
from cloudvid.cli.status_view import table, workers_text
from cloudvid.cli.waiting import said_once
from cloudvid.client import Client
from cloudvid.endpoints.errors import CloudVidError, NotScaled, ServerUnavailable
from cloudvid.server.state import StageStatus
from cloudvid_schema.protocol import Stage

_WATCH_SECONDS = 2.0
_Stages = Annotated[list[Stage] | None, typer.Option("--stage", help="Only this stage; may be repeated.")]
_Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds after which to give up.")]


@takes_client
def ps(
    client: Client,
    seconds: Annotated[
        float | None, typer.Argument(min=0.1, show_default=False, help="Between two looks, with --watch; default: 2.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again.")] = False,
    stage: _Stages = None,
    json: Json = False,
) -> None:
    """Show each stage's workers, queue, model, pace and memory.

    The pace is in seconds per denoising step and million pixels (of every frame), as measured by the workers.
    """
    if seconds is not None and not watch:
        raise typer.BadParameter("belongs to --watch", param_hint="SECONDS")
    stages = stage or list(Stage)
    with _screen(watch and not json) as show:
        while True:
            found = _look(client, stages)
            show(_ps_json(found) if json else table(stages, found))
            if not watch:
                break
            time.sleep(seconds or _WATCH_SECONDS)
    if any(isinstance(seen, CloudVidError) for seen in found.values()):
        raise typer.Exit(3)


def _look(client: Client, stages: list[Stage]) -> dict[Stage, StageStatus | CloudVidError]:
    found: dict[Stage, StageStatus | CloudVidError] = {}
    for stage in stages:
        try:
            found[stage] = client.status(stage)
        except CloudVidError as error:
            found[stage] = error
    return found


def _ps_json(found: dict[Stage, StageStatus | CloudVidError]) -> str:
    return json_format.dumps({"stages": [_document(stage, seen) for stage, seen in found.items()]})


def _document(stage: Stage, seen: StageStatus | CloudVidError) -> dict[str, Any]:
    if isinstance(seen, CloudVidError):
        return {"stage": stage, "error": str(seen)}
    return seen.model_dump(mode="json")


@contextmanager
def _screen(redraws: bool) -> Iterator[Any]:
    """How a text is printed: over the previous one on a terminal, otherwise below it."""
    console = Console()
    if not (redraws and console.is_terminal):
        yield lambda text: print(text, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)


@takes_client
def scale(
    client: Client,
    stage: Annotated[Stage, typer.Argument(help="t2i or i2v.", show_default=False)],
    workers: Annotated[int, typer.Argument(min=0, help="Number of workers.", show_default=False)],
    *,
    timeout: _Timeout = 600.0,
    max_workers: Annotated[
        int | None, typer.Option("--max-workers", min=0, help="New upper limit of this number.")
    ] = None,
    json: Json = False,
) -> None:
    """Give a stage so many workers and wait until they are ready."""
    began = time.monotonic()
    shown = ""

    def show(seen: StageStatus) -> None:
        nonlocal shown
        text = workers_text(seen)
        if text != shown:
            print(
                f"{stage}: {text} ({time.monotonic() - began:.0f} s)",
                file=sys.stderr if json else sys.stdout,
                flush=True,
            )
        shown = text

    error: NotScaled | None = None
    try:
        seen = client.scale(stage, workers, max_workers=max_workers, timeout=timeout, on_status=show)
    except NotScaled as failed:
        error, seen = failed, failed.status
    if json:
        document = _document(stage, seen) | {"scaled": error is None, "seconds": round(time.monotonic() - began, 3)}
        print(json_format.dumps(document | ({"error": str(error)} if error else {})))
    if error:
        raise error


@takes_client
def wait(client: Client, timeout: _Timeout = 600.0, stage: _Stages = None, json: Json = False) -> None:
    """Wait until both stages have a worker that is ready."""
    stages = stage or list(Stage)
    error: ServerUnavailable | None = None
    try:
        client.wait_until_ready(*stages, timeout=timeout, on_wait=said_once())
    except ServerUnavailable as failed:
        error = failed
    if json:
        told = {"ready": error is None, **json_format.loads(_ps_json(_look(client, stages)))}
        print(json_format.dumps(told | ({"error": str(error)} if error else {})))
    if error:
        raise error
    if json:
        return
    if all(client.server.look(stage).counted_by != "nothing" for stage in stages):
        print("both stages are ready" if len(set(stages)) > 1 else f"{stages[0]} is ready")
    else:
        print("the server answers; its workers cannot be counted (neither the management API nor a proxy can be asked)")
