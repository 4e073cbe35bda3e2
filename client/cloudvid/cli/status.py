"""The state of stages as text: a table, one line, or what a command waits for."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cloudvid.client import Client
from cloudvid.endpoints.answers import plain
from cloudvid.endpoints.errors import CloudVidError
from cloudvid.server.local import tail
from cloudvid.server.server import Server
from cloudvid.server.state import StageStatus
from cloudvid_schema.protocol import Description, JobStatus, Stage

HEADINGS = ("stage", "workers", "queue", "device", "dtype", "s/step/Mpx", "memory", "model")
_COMMIT = 12  # characters that identify a commit
_UNKNOWN = "-"
OnReason = Callable[[object], None]
"""Told why a command waits: a text, or an error with one."""
Seen = StageStatus | CloudVidError
"""The state of a stage, or why it is not known."""


def look_at(client: Client, stages: Iterable[Stage], patience: float = 1.0) -> dict[Stage, Seen]:
    """The state of each stage; its worker gets `patience` seconds to describe itself."""
    found: dict[Stage, Seen] = {}
    for stage in stages:
        try:
            found[stage] = client.status(stage, patience)
        except CloudVidError as error:
            found[stage] = _from_outside(client.server, stage) if client.server.guesses_management else error
    return {
        stage: seen if isinstance(seen, CloudVidError) else client.server.with_restarts(seen)
        for stage, seen in found.items()
    }


def _from_outside(server: Server, stage: Stage) -> Seen:
    """The state of a stage whose management API does not answer: a proxy counts its workers."""
    try:
        seen = server.look(stage)
        return server.reach_management(stage) if seen.counted_by == "nothing" else seen
    except CloudVidError as error:
        return error


def workers_text(seen: StageStatus) -> str:
    """`2 ready, 1 loading`."""
    counts = {"ready": seen.ready, "loading": seen.loading, "dead": seen.dead}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def table(found: Mapping[Stage, Seen], width: int | None = None) -> str:
    """A table with a row for every stage, and notes below it; the models are there if the terminal is too narrow."""
    rows = []
    notes = []
    for stage, seen in found.items():
        if isinstance(seen, CloudVidError):
            rows.append((stage, "unknown", *[_UNKNOWN] * (len(HEADINGS) - 2)))
            notes.append(f"{stage}: {seen}")
        else:
            rows.append(tuple(plain(cell) or _UNKNOWN for cell in _row(seen)))
            notes += _notes(seen)
    lines = _lines(HEADINGS, rows)
    if width is not None and max(map(len, lines)) > width:
        lines = _lines(HEADINGS[:-1], [row[:-1] for row in rows])
        notes = [*(f"{stage}: {model}" for stage, *_, model in rows if model != _UNKNOWN), *notes]
    return "\n".join([*lines, *dict.fromkeys(notes)])


def running_jobs(client: Client, stages: Iterable[Stage]) -> list[JobStatus]:
    """The jobs that wait or run; empty if the server does not list them."""
    try:
        return client.server.jobs.listed(*stages)
    except CloudVidError:
        return []


def jobs_table(jobs: Iterable[JobStatus], now: Callable[[], float] = time.time) -> list[str]:
    """The lines of a table with a row for every job; no lines if there is no job."""
    rows = [(job.id, job.stage, job.state, _step(job), f"{max(0.0, now() - job.since):.0f} s") for job in jobs]
    return ["", *_lines(("job", "stage", "state", "step", "for"), rows)] if rows else []


def _step(job: JobStatus) -> str:
    return f"{job.phase} {job.step}/{job.steps}" if job.phase else _UNKNOWN


def _lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _row(seen: StageStatus) -> tuple[str, ...]:
    """The cells of a stage; an empty one is not known."""
    told = seen.description or Description(stage=seen.stage, model="busy" if seen.busy else "")
    gpus = sorted({worker.gpu for worker in seen.workers if worker.gpu is not None})
    name, at, revision = told.model.partition("@")
    return (
        seen.stage,
        workers_text(seen),
        "" if seen.counted_by == "proxy" else str(seen.queue),
        told.device or ",".join(f"cuda:{gpu}" for gpu in gpus),
        told.precision,
        f"{told.seconds['denoise']:.2f}" if "denoise" in told.seconds else "",
        _memory(seen),
        name + at + revision[:_COMMIT],
    )


def _memory(seen: StageStatus) -> str:
    """Resident memory of all workers, memory in use on their GPUs, and the peak of one worker."""
    resident = sum(worker.memory or 0 for worker in seen.workers)
    # Workers on the same GPU all report the same number.
    gpus = {worker.gpu: worker.gpu_memory for worker in seen.workers if worker.gpu_memory is not None}
    peak = seen.description.peak_memory if seen.description else None
    parts = (("", resident), ("GPU ", sum(gpus.values())), ("peak ", peak))
    return ", ".join(f"{name}{size / 1e9:.1f} GB" for name, size in parts if size)


def _notes(seen: StageStatus) -> list[str]:
    notes, stage = [], seen.stage
    if not seen.workers:
        notes.append(f"{stage} has no workers and refuses requests; start one with `cloudvid scale {stage} 1`")
    if seen.restarts:
        notes.append(f"{stage}: {seen.restarts_text}")
    if seen.unhealthy:
        remedy = "fix the reason in the log, then replace it with `cloudvid scale STAGE N`"
        notes.append(f"{seen.server} has given up a worker that failed to start; {remedy}")
    return notes


@contextmanager
def waiting(
    log: Callable[[], Path | None],
    console: Console,
    elsewhere: OnReason,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[OnReason]:
    """Show what a command waits for on one line of a terminal, with the seconds and how the workers' loading goes on.

    Args:
        log: the workers', once it exists; its last line is shown.
        elsewhere: is told where there is no terminal.
        clock: monotonic seconds.
    """
    if not console.is_terminal:
        yield elsewhere
        return
    began = clock()
    with Live(console=console, auto_refresh=False, transient=True) as line:

        def show(reason: object) -> None:
            last = [line.rpartition(" MODEL_LOG - ")[2] for line in tail(path, 1)] if (path := log()) else []
            parts = [f"{clock() - began:.0f} s: {waited_for(reason)}", *map(plain, last)]
            line.update(Text(" | ".join(parts), no_wrap=True, overflow="ellipsis"), refresh=True)

        yield show


def waited_for(reason: object) -> str:
    """A reason for waiting, without the remedy that is being followed."""
    return str(reason).partition("; `cloudvid wait`")[0]


def said_once(after: float = 0.0, clock: Callable[[], float] = time.monotonic) -> OnReason:
    """A callback that prints the reason for waiting to stderr when it changes.

    Args:
        after: seconds of silence at first, for a server that has just been started.
        clock: monotonic seconds.
    """
    said, began = "", clock()

    def tell(reason: object) -> None:
        nonlocal said
        text = waited_for(reason)
        if text != said and clock() - began >= after:
            said = text
            print(f"waiting: {said}", file=sys.stderr, flush=True)

    return tell
