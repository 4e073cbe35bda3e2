"""How a batch is shown while it runs: live bars on a terminal, lines elsewhere, only paths, or JSON."""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cloudvid.batch.events import (
    BatchEvent,
    BatchFinished,
    BatchStarted,
    ModelsKnown,
    SceneFailed,
    SceneSkipped,
    StageDone,
    StageProgress,
    StageRetried,
    StageStarted,
)
from cloudvid.batch.toys import toy_note
from cloudvid_schema.protocol import Stage

_PROGRESS_SECONDS = 15.0  # between two progress lines without bars


class View(Protocol):
    """Shows events."""

    def show(self, event: BatchEvent) -> None:
        """Show one event."""

    def close(self) -> None:
        """Restore the terminal."""


class Pace:
    """How fast the stages work: seconds per step, and when the batch will end.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.scenes = 0
        self.settled: dict[Stage, set[str]] = {stage: set() for stage in Stage}
        """Scenes that need nothing more from a stage."""
        self._made = dict.fromkeys(Stage, 0)
        self._first: dict[Stage, float] = {}
        self._last_step: dict[tuple[str, Stage], float] = {}
        self.seconds_per_step: dict[Stage, float] = {}

    def take(self, event: BatchEvent) -> None:
        """Update the pace from an event."""
        now = self._clock()
        match event:
            case BatchStarted():
                self.scenes = event.scenes
            case StageStarted():
                self._first.setdefault(event.stage, now)
                self._last_step.pop((event.scene, event.stage), None)
                if event.stage is Stage.I2V:
                    self.settled[Stage.T2I].add(event.scene)
            case StageProgress(phase="denoise"):
                # The time before the first step was spent in the queue.
                before = self._last_step.get((event.scene, event.stage))
                if before is not None:
                    self.seconds_per_step[event.stage] = now - before
                self._last_step[event.scene, event.stage] = now
            case StageDone():
                self._made[event.stage] += 1
                self.settled[event.stage].add(event.scene)
            case SceneSkipped() | SceneFailed():
                for stage in Stage:
                    self.settled[stage].add(event.scene)

    def seconds_left(self) -> float | None:
        """Seconds until the slower stage is finished, at the measured pace; None before a stage has finished once."""
        estimates = []
        for stage, began in self._first.items():
            left = self.scenes - len(self.settled[stage])
            if left > 0 and self._made[stage]:
                estimates.append(left * (self._clock() - began) / self._made[stage])
        return max(estimates) if estimates else None

    def step_text(self, event: StageProgress) -> str:
        """How far a request is: `denoise 12/25, 3.60 s/step`."""
        pace = self.seconds_per_step.get(event.stage) if event.phase == "denoise" else None
        return f"{event.phase} {event.step}/{event.steps}" + (f", {pace:.2f} s/step" if pace is not None else "")


class PlainView:
    """A line for every file, and occasionally one for the progress of a long clip."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._pace = Pace(clock)
        self._last_line = clock()
        self._models: set[str] = set()

    def show(self, event: BatchEvent) -> None:
        """Print a line if the event deserves one."""
        self._pace.take(event)
        match event:
            case StageDone():
                self._models.add(event.model)
                for warning in event.warnings:
                    self._print(f"warning: {event.scene}: {warning}", sys.stderr)
                self._print(f"{event.path}  {event.size:,} bytes, {event.seconds:.1f} s, seed {event.seed}")
            case SceneFailed():
                self._print(f"failed: {event.scene}: {event.message}", sys.stderr)
            case StageRetried():
                self._print(f"again in {event.wait_seconds:.1f} s: {event.scene}: {event.message}", sys.stderr)
            case StageProgress() if self._clock() - self._last_line >= _PROGRESS_SECONDS:
                self._print(f"  {event.scene}: {event.stage} {self._pace.step_text(event)}{_left(self._pace)}")
            case ModelsKnown() if None in event.models.values():
                self._print(UNSEEN_NOTE)
            case BatchFinished():
                if note := toy_note(self._models):
                    self._print(f"note: {note}")
                self._print(summary(event))

    def _print(self, line: str, out: TextIO | None = None) -> None:
        self._last_line = self._clock()
        _write_line(line, out or self._out)

    def close(self) -> None:
        """Nothing to restore."""


UNSEEN_NOTE = (
    "note: the server's models are not known yet (no worker is free, or the management API cannot be asked); "
    "finished files of another model are made again once the first answer shows the model"
)


class LiveView:
    """A bar for every stage that moves with every step, below the lines.

    Args:
        console: where to draw.
        on_clock: redraw ten times a second instead of with every event.
    """

    def __init__(self, console: Console, on_clock: bool = True) -> None:
        self._pace = Pace()
        self._models: set[str] = set()
        self._console = console
        columns = (
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[detail]}"),
        )
        self._progress = Progress(*columns, console=console, expand=True, transient=True, auto_refresh=on_clock)
        self._tasks: dict[Stage, TaskID] = {}
        self._parts: dict[Stage, dict[str, float]] = {stage: {} for stage in Stage}

    def show(self, event: BatchEvent) -> None:
        """Move the bars, and print a line if the event deserves one."""
        self._take(event)
        if not self._progress.live.auto_refresh:
            self._progress.refresh()

    def _take(self, event: BatchEvent) -> None:
        self._pace.take(event)
        match event:
            case BatchStarted():
                names = {Stage.T2I: "picture", Stage.I2V: "clip"}
                for stage in Stage:
                    self._tasks[stage] = self._progress.add_task(names[stage], total=event.scenes, count="", detail="")
                self._progress.start()
            case ModelsKnown() if None in event.models.values():
                self._console.print(UNSEEN_NOTE, markup=False, highlight=False)
            case StageProgress():
                share = event.step / event.steps if event.phase == "denoise" else 1.0
                self._parts[event.stage][event.scene] = 0.95 * share  # the rest is decoding and encoding
                self._move(event.stage, f"{event.scene} {self._pace.step_text(event)}")
            case StageDone():
                self._done(event)
            case SceneSkipped():
                for stage in Stage:
                    self._move(stage)
            case SceneFailed():
                for stage in Stage:
                    self._parts[stage].pop(event.scene, None)
                    self._move(stage)
                self._console.print(f"failed: {event.scene}: {event.message}", style="red", markup=False)
            case StageRetried():
                text = f"again in {event.wait_seconds:.1f} s: {event.scene}: {event.message}"
                self._console.print(text, style="yellow", markup=False)
            case BatchFinished():
                self.close()
                if note := toy_note(self._models):
                    self._console.print(f"note: {note}", markup=False, highlight=False)
                self._console.print(summary(event), markup=False, highlight=False)

    def _done(self, event: StageDone) -> None:
        self._parts[event.stage].pop(event.scene, None)
        self._models.add(event.model)
        for warning in event.warnings:
            self._console.print(f"warning: {event.scene}: {warning}", style="yellow", markup=False)
        self._console.print(f"{event.path}  {event.size:,} bytes, {event.seconds:.1f} s", markup=False, highlight=False)
        self._move(event.stage)

    def _move(self, stage: Stage, detail: str = "") -> None:
        done = len(self._pace.settled[stage])
        self._progress.update(
            self._tasks[stage],
            completed=done + sum(self._parts[stage].values()),
            count=f"{done}/{self._pace.scenes}",
            detail=detail + (_left(self._pace) if stage is Stage.I2V else ""),
        )

    def close(self) -> None:
        """Remove the bars."""
        self._progress.stop()


class QuietView:
    """The paths of the files, and the failures."""

    def show(self, event: BatchEvent) -> None:
        """Print a path or a failure."""
        if isinstance(event, StageDone):
            _write_line(event.path, sys.stdout)
        elif isinstance(event, SceneFailed):
            _write_line(f"failed: {event.scene}: {event.message}", sys.stderr)

    def close(self) -> None:
        """Nothing to restore."""


class JsonView:
    """Every event as a line of JSON on stdout, and the text for people on stderr."""

    def __init__(self) -> None:
        self._text = PlainView(sys.stderr)

    def show(self, event: BatchEvent) -> None:
        """Print the event."""
        _write_line(event.model_dump_json(), sys.stdout)
        self._text.show(event)

    def close(self) -> None:
        """Nothing to restore."""


def _write_line(line: str, out: TextIO) -> None:
    out.write(f"{line}\n")  # in one call: `print` writes the line's end separately, and an interrupt may come between
    out.flush()


def summary(event: BatchFinished) -> str:
    """A one-line summary of the batch."""
    parts = [f"{event.done + event.skipped} of {event.scenes} scenes done"]
    if event.skipped:
        parts.append(f"{event.skipped} of them before")
    if event.failed:
        parts.append(f"{event.failed} failed")
    if event.stopped:
        parts.append(f"stopped: {event.stopped}")
    return f"{', '.join(parts)} ({event.seconds:.0f} s)"


def _left(pace: Pace) -> str:
    seconds = pace.seconds_left()
    if seconds is None:
        return ""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f", {hours}:{minutes:02}:{seconds:02} left"
