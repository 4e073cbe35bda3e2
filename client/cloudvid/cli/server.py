"""Commands on the server: ps, scale, wait, doctor."""

import json as json_format
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cloudvid.cli.options import Json, OutputDir, takes_client
from cloudvid.cli.status import (
    OnReason,
    Seen,
    jobs_table,
    look_at,
    running_jobs,
    said_once,
    table,
    waiting,
    workers_text,
)
from cloudvid.client import Client
from cloudvid.endpoints.answers import plain
from cloudvid.endpoints.errors import CloudVidError, NotScaled, ServerUnavailable
from cloudvid.server.doctor import CHECKS, Finding, Place, examine
from cloudvid.server.local import worker_log
from cloudvid.server.state import StageStatus
from cloudvid_schema.protocol import JOB_ID, JOB_ID_RULE, Stage

_WATCH_SECONDS = 2.0
_Stages = Annotated[list[Stage] | None, typer.Option("--stage", help="Only this stage; may be repeated.")]
_Timeout = Annotated[float, typer.Option(min=0, help="Seconds after which to give up.")]


@takes_client
def ps(
    client: Client,
    seconds: Annotated[
        float | None,
        typer.Argument(min=0.1, show_default=False, help="Seconds between looks, for --watch; default: 2."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking until interrupted.")] = False,
    stage: _Stages = None,
    json: Json = False,
) -> None:
    """Show each stage's workers, queue, model, pace and jobs.

    The pace is in seconds per denoising step and million pixels (of every frame), as measured by the workers.
    """
    if seconds is not None and not watch:
        raise typer.BadParameter("belongs to --watch", param_hint="SECONDS")
    console = Console()
    width = console.width if console.is_terminal else None
    with _screen(watch and not json) as show:
        while True:
            found = look_at(client, stage or Stage)
            jobs = running_jobs(client, stage or Stage)
            if json:
                told = [job.model_dump(exclude_none=True) for job in jobs]
                show(json_format.dumps(_documents(found) | {"jobs": told}))
            else:
                clock = [f"{time.strftime('%H:%M:%S')}, every {seconds or _WATCH_SECONDS:g} s"] if watch else []
                show("\n".join([*clock, table(found, width), *jobs_table(jobs)]))
            if not watch:
                break
            time.sleep(seconds or _WATCH_SECONDS)
    if any(isinstance(seen, CloudVidError) for seen in found.values()):
        raise typer.Exit(3)


@takes_client
def cancel(
    client: Client,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids, as `cloudvid ps` shows them.")],
) -> None:
    """Cancel jobs, whether they wait or run.

    A worker is free after the step in hand.
    """
    if wrong := [job for job in jobs if not re.fullmatch(JOB_ID, job)]:
        raise typer.BadParameter(f"must be {JOB_ID_RULE}, got {wrong[0]!r}", param_hint="JOB")
    unknown = 0
    for job in jobs:
        known = client.server.jobs.cancel(job)
        unknown += not known
        print(f"{job}: {'cancelled' if known else 'not known; if it arrives within a day, it is not carried out'}")
    if unknown:
        raise typer.Exit(1)


def _documents(found: Mapping[Stage, Seen]) -> dict[str, Any]:
    stages = [
        {"stage": stage, "error": str(seen)} if isinstance(seen, CloudVidError) else seen.model_dump(mode="json")
        for stage, seen in found.items()
    ]
    return {"stages": stages}


@contextmanager
def _screen(redraws: bool) -> Iterator[Any]:
    """How a text is printed: over the previous one on a terminal, otherwise below it."""
    console = Console()
    if redraws and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda text: live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)
    else:
        yield lambda text: print(text, flush=True)


def _waiting(client: Client, elsewhere: OnReason) -> AbstractContextManager[OnReason]:
    return waiting(lambda: worker_log(client.server.key_file), Console(stderr=True), elsewhere)


@takes_client
def scale(
    client: Client,
    stage: Annotated[Stage, typer.Argument(help="t2i or i2v.", show_default=False)],
    workers: Annotated[int, typer.Argument(min=0, help="Number of workers.", show_default=False)],
    *,
    timeout: _Timeout = 600.0,
    max_workers: Annotated[int | None, typer.Option(min=0, help="New upper limit for the number of workers.")] = None,
    json: Json = False,
) -> None:
    """Set a stage's number of workers and wait until they are ready."""
    began = time.monotonic()
    shown = ""

    def show(seen: StageStatus) -> None:
        nonlocal shown
        if shown != (text := workers_text(seen)):
            out = sys.stderr if json else sys.stdout
            print(f"{stage}: {text} ({time.monotonic() - began:.0f} s)", file=out, flush=True)
        shown = text
        tell(f"{stage}: {text}")

    def finish(seen: StageStatus, **fault: str) -> None:
        if json:
            ended = {"scaled": not fault, "seconds": round(time.monotonic() - began, 3)}
            print(json_format.dumps(seen.model_dump(mode="json") | ended | fault))

    try:
        with _waiting(client, lambda reason: None) as tell:
            seen = client.scale(stage, workers, max_workers=max_workers, timeout=timeout, on_status=show)
        finish(seen)
    except NotScaled as error:
        finish(error.status, error=str(error))
        raise


@takes_client
def wait(client: Client, timeout: _Timeout = 600.0, stage: _Stages = None, json: Json = False) -> None:
    """Wait until each stage has a ready worker."""
    stages = stage or list(Stage)
    try:
        with _waiting(client, said_once()) as show:
            client.wait_until_ready(*stages, timeout=timeout, on_wait=show)
    except ServerUnavailable as error:
        if json:
            print(json_format.dumps({"ready": False, **_documents(look_at(client, stages)), "error": str(error)}))
        raise
    if json:
        print(json_format.dumps({"ready": True, **_documents(look_at(client, stages))}))
    elif all(client.server.look(stage).counted_by != "nothing" for stage in stages):
        print("both stages are ready" if len(set(stages)) > 1 else f"{stages[0]} is ready")
    else:
        print("the server answers; its workers cannot be counted (neither the management API nor a proxy can be asked)")


@takes_client
def doctor(client: Client, output_dir: OutputDir = Path("output"), json: Json = False) -> None:
    """Find what is wrong with machine or server, and how to fix it."""
    findings = []
    for finding in examine(CHECKS, Place(client.server, output_dir)):
        findings.append(finding)
        if not json:
            found = f"\n{'':<8} ".join(map(plain, finding.found.split("\n")))
            text = f"{finding.level:<8} {finding.check}: {found}"
            print(f"{text}\n{'':<8} -> {finding.remedy}" if finding.remedy else text, flush=True)
    if json:
        print(json_format.dumps({"findings": [vars(finding) for finding in findings]}))
    else:
        counts = Counter(finding.level for finding in findings)
        print(f"{_count(counts['problem'], 'problem')}, {_count(counts['note'], 'note')}")
    raise typer.Exit(exit_code(findings))


def exit_code(findings: list[Finding]) -> int:
    """0 without problems, 3 if the server takes no requests, 1 for other problems."""
    problems = [finding for finding in findings if finding.level == "problem"]
    return 3 if any(finding.unavailable for finding in problems) else 1 if problems else 0


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' if number != 1 else ''}"
