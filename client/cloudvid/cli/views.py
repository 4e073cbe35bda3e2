"""How a batch is shown while it runs: live bars on a terminal, lines elsewhere, only paths, or JSON."""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from cloudvid.batch import events
from cloudvid.batch.estimate import duration
from cloudvid.batch.gallery import PAGE
from cloudvid.batch.toys import toy_note
from cloudvid_schema.protocol import Stage

_PROGRESS_SECONDS = 15.0  # between two progress lines without bars
_BAR_WIDTH = 16  # fixed: a bar that fills the line would jump with the text beside it
_LISTED = 20  # failed scenes in the summary
_UNSEEN_NOTE = (
    "note: the server's models are not known yet (no worker is free, or the management API cannot be asked); "
    "finished files of another model are made again once the first answer shows the model"
)


class Pace:
    """How fast the stages work: seconds per step, and when the batch will end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.scenes = 0
        self.settled: dict[Stage, set[str]] = {stage: set() for stage in Stage}
        """Scenes that need nothing more from a stage."""
        self._left: tuple[float, float] | None = None
        """Seconds that are left of the batch, and when that was so."""
        self._last_step: dict[tuple[str, Stage], float] = {}
        self._seconds_per_step: dict[Stage, float] = {}

    def take(self, event: events.BatchEvent) -> None:
        """Update the pace from an event."""
        now = self._clock()
        if isinstance(event, events.ModelsKnown | events.StageProgress) and event.seconds_left is not None:
            self._left = event.seconds_left, now
        match event:
            case events.BatchStarted():
                self.scenes = event.scenes
            case events.StageStarted():
                self._last_step.pop((event.scene, event.stage), None)
                if event.stage is Stage.I2V:
                    self.settled[Stage.T2I].add(event.scene)
            case events.StageProgress(phase="denoise"):
                # The time before the first step was spent in the queue.
                before = self._last_step.get((event.scene, event.stage))
                if before is not None:
                    self._seconds_per_step[event.stage] = now - before
                self._last_step[event.scene, event.stage] = now
            case events.StageDone():
                self.settled[event.stage].add(event.scene)
            case events.SceneSkipped() | events.SceneFailed() | events.SceneCancelled():
                for stage in Stage:
                    self.settled[stage].add(event.scene)

    def step_text(self, event: events.StageProgress) -> str:
        """How far a request is: `denoise 12/25, 3.60 s/step`."""
        pace = self._seconds_per_step.get(event.stage) if event.phase == "denoise" else None
        return f"{event.phase} {event.step}/{event.steps}" + (f", {pace:.2f} s/step" if pace is not None else "")

    def left_text(self) -> str:
        """Time until the batch is done: `, 0:12:30 left of the batch`; empty while that is not known."""
        if self._left is None:
            return ""
        seconds, at = self._left
        return f", {duration(max(0.0, seconds - (self._clock() - at)))} left of the batch"


class View(ABC):
    """Shows events as lines, above bars or without."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pace = Pace(clock)
        self._models: set[str] = set()
        self._page = Path(PAGE)
        self._unfinished: dict[str, list[str]] = {"failed": [], "cancelled": []}
        self._waiting: dict[Stage, set[str]] = defaultdict(set)
        """Scenes that wait for a busy or absent server."""

    def show(self, event: events.BatchEvent) -> None:
        """Print a line if the event deserves one."""
        self._pace.take(event)
        self._note(event)
        match event:
            case events.ModelsKnown() if None in event.models.values():
                self._print(_UNSEEN_NOTE)
            case events.StageDone():
                self._models.add(event.model)
                for warning in event.warnings:
                    self._print(f"warning: {event.scene}: {warning}", "yellow")
                self._print(self._file_line(event))
            case events.SceneFailed():
                self._print(f"failed: {event.scene}: {event.message}", "red")
            case events.SceneCancelled():
                self._print(f"cancelled: {event.scene}", "yellow")
            case events.StageRetried(patience=float()):
                if not self._waiting[event.stage]:
                    since = time.strftime("%H:%M:%S")
                    self._print(f"{event.message}; waiting up to {event.patience:.0f} s since {since}", "yellow")
                self._waiting[event.stage].add(event.scene)
            case events.StageRetried():
                self._print(f"again in {event.wait_seconds:.1f} s: {event.scene}: {event.message}", "yellow")
            case events.BatchFinished():
                if note := toy_note(self._models):
                    self._print(f"note: {note}")
                for name, scenes in self._unfinished.items():
                    if scenes:
                        more = f" and {len(scenes) - _LISTED} more" if len(scenes) > _LISTED else ""
                        self._print(f"{name} scenes: {', '.join(scenes[:_LISTED])}{more}")
                page = f"; open {self._page}" if self._page.is_file() else ""
                self._print(summary(event) + page)

    def _note(self, event: events.BatchEvent) -> None:
        """Keep what later lines say of the batch."""
        match event:
            case events.BatchStarted():
                self._page = Path(event.output_dir, PAGE)
            case events.SceneFailed():
                self._unfinished["failed"].append(event.scene)
            case events.SceneCancelled():
                self._unfinished["cancelled"].append(event.scene)
        if isinstance(event, events.StageProgress | events.StageDone | events.SceneFailed | events.SceneCancelled):
            self._waiting[event.stage].discard(event.scene)

    def _file_line(self, event: events.StageDone) -> str:
        return f"{event.path}  {event.size:,} bytes, {event.seconds:.1f} s, seed {event.seed}"

    @abstractmethod
    def _print(self, line: str, style: str = "") -> None:
        """Print a line; one that is about a fault has a style."""

    def close(self) -> None:  # noqa: B027 - only one view has anything to restore
        """Restore the terminal."""


class PlainView(View):
    """A line for every file, and occasionally one for the progress of a long clip.

    Args:
        out: where to write; faults go to stderr.
        clock: monotonic seconds.
        stamp: what each line begins with.
    """

    def __init__(
        self, out: TextIO, clock: Callable[[], float] = time.monotonic, stamp: Callable[[], str] = lambda: ""
    ) -> None:
        super().__init__(clock)
        self._out, self._clock, self._stamp = out, clock, stamp
        self._last_line = clock()

    def show(self, event: events.BatchEvent) -> None:
        """Print a line if the event deserves one."""
        super().show(event)
        if isinstance(event, events.StageProgress) and self._clock() - self._last_line >= _PROGRESS_SECONDS:
            self._print(f"  {event.scene}: {event.stage} {self._pace.step_text(event)}{self._pace.left_text()}")

    def _file_line(self, event: events.StageDone) -> str:
        return f"{len(self._pace.settled[event.stage])}/{self._pace.scenes}  {super()._file_line(event)}"

    def _print(self, line: str, style: str = "") -> None:
        self._last_line = self._clock()
        _write_line(self._stamp() + line, sys.stderr if style else self._out)


class LiveView(View):
    """A bar for every stage that moves with every step, below the lines.

    Args:
        console: where to draw.
        on_clock: redraw ten times a second instead of with every event.
    """

    def __init__(self, console: Console, on_clock: bool = True) -> None:
        super().__init__(time.monotonic)
        columns = (
            "{task.description:<6}",
            BarColumn(_BAR_WIDTH),
            "{task.fields[count]}",
            "{task.fields[detail]}",
            TextColumn("{task.fields[scene]}", table_column=Column(ratio=1, no_wrap=True)),  # a long id is cut
        )
        self._progress = Progress(*columns, console=console, expand=True, transient=True, auto_refresh=on_clock)
        self._tasks: dict[Stage, TaskID] = {}
        self._parts: dict[Stage, dict[str, float]] = {stage: {} for stage in Stage}

    def show(self, event: events.BatchEvent) -> None:
        """Move the bars, and print a line if the event deserves one."""
        if isinstance(event, events.BatchFinished):
            self.close()
        super().show(event)
        match event:
            case events.BatchStarted():
                for stage, name in ((Stage.T2I, "picture"), (Stage.I2V, "clip")):
                    task = self._progress.add_task(name, total=event.scenes, count="", detail="", scene="")
                    self._tasks[stage] = task
                self._progress.start()
            case events.StageProgress():
                share = event.step / event.steps if event.phase == "denoise" else 1.0
                self._parts[event.stage][event.scene] = 0.95 * share  # the rest is decoding and encoding
                self._move(event.stage, self._pace.step_text(event), event.scene)
            case events.StageRetried():
                self._parts[event.stage].pop(event.scene, None)
                self._move(event.stage, "waiting to send it again", event.scene)
            case events.StageDone():
                self._parts[event.stage].pop(event.scene, None)
                self._move(event.stage)
            case events.SceneSkipped() | events.SceneFailed() | events.SceneCancelled():
                for stage in Stage:
                    self._parts[stage].pop(event.scene, None)
                    self._move(stage)
        if not self._progress.live.auto_refresh:
            self._progress.refresh()

    def _print(self, line: str, style: str = "") -> None:
        self._progress.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _move(self, stage: Stage, detail: str = "", scene: str = "") -> None:
        done = len(self._pace.settled[stage])
        self._progress.update(
            self._tasks[stage],
            completed=done + sum(self._parts[stage].values()),
            count=f"{done}/{self._pace.scenes}",
            scene=scene,
            detail=detail + (self._pace.left_text() if stage is Stage.I2V else ""),
        )

    def close(self) -> None:
        """Remove the bars."""
        self._progress.stop()


class QuietView(PlainView):
    """The paths of the files, and the failures."""

    def show(self, event: events.BatchEvent) -> None:
        """Print a path or a failure."""
        if isinstance(event, events.StageDone):
            self._print(event.path)
        elif isinstance(event, events.SceneFailed):
            self._print(f"failed: {event.scene}: {event.message}", "red")
        elif isinstance(event, events.SceneCancelled):
            self._print(f"cancelled: {event.scene}", "yellow")


class JsonView(PlainView):
    """Every event as a line of JSON on stdout, and the text for people elsewhere."""

    def show(self, event: events.BatchEvent) -> None:
        """Print the event."""
        # ASCII, as a path need not be UTF-8, nor the console.
        _write_line(json.dumps(event.model_dump(mode="json"), separators=(",", ":")), sys.stdout)
        super().show(event)


def _write_line(line: str, out: TextIO) -> None:
    try:
        out.write(f"{line}\n")  # in one call: `print` writes the line's end separately; an interrupt may come between
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # such as a full disk: the batch is worth more than its report
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        print(f"warning: {out.name} cannot be written ({error.strerror}); the batch continues", file=sys.stderr)


def summary(event: events.BatchFinished) -> str:
    """A one-line summary of the batch."""
    parts = [f"{event.done + event.skipped} of {event.scenes} scenes done"]
    if event.skipped:
        parts.append(f"{event.skipped} of them before")
    if event.failed:
        parts.append(f"{event.failed} failed")
    if event.cancelled:
        parts.append(f"{event.cancelled} cancelled")
    if event.stopped:
        parts.append(f"stopped: {event.stopped}")
    return f"{', '.join(parts)} ({event.seconds:.0f} s)"
