"""The batch: each scene's picture, then its clip, with both stages working at once, resumable at any moment.

Every request has a thread, and a stage gets only as many requests as it has ready workers, and one that waits. The
generator makes all decisions in the caller's thread; the other threads send, store and report. A file is on record
before it is reported.
"""

import errno
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cloudvid.batch import events
from cloudvid.batch.estimate import Estimate, Task
from cloudvid.batch.gallery import PAGE, Gallery
from cloudvid.batch.manifest import Failure
from cloudvid.batch.plan import reasons, refusals
from cloudvid.batch.progress import Asked, SceneProgress
from cloudvid.batch.runner import Finished, RenderOptions, StageRunner
from cloudvid.batch.scenes import Scene, parse_scenes
from cloudvid.batch.store import Store
from cloudvid.batch.watch import Watch
from cloudvid.client import Client
from cloudvid.endpoints.errors import (
    Cancelled,
    CloudVidError,
    NoRoom,
    OutputError,
    PictureChanged,
    Rejected,
    ServerUnavailable,
)
from cloudvid.endpoints.failures import backoff
from cloudvid_schema.files import DISK, Disk
from cloudvid_schema.protocol import Stage

_TICK_SECONDS = 1.0
_GALLERY_SECONDS = 10.0
_ONE_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Reasons why one file cannot be written although others can."""


def render(
    scenes: Sequence[Scene | dict[str, Any]],
    client: Client,
    output_dir: str | Path,
    options: RenderOptions | None = None,
    *,
    disk: Disk = DISK,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[int], float] = backoff,
) -> Generator[events.BatchEvent, None, None]:
    """Make every scene's picture and clip, and report what happens as it happens.

    This is a generator: nothing happens until something iterates over it. `render_all` does that.

    Finished files are never made again, and partial files are never mistaken for finished ones. If a parameter, the
    model or a file changes, only the affected stages run again. The last event is always `BatchFinished`: to interrupt
    a batch from outside of its iteration, throw `KeyboardInterrupt` into the generator, which returns that event.
    Closing the generator stops the batch without it. A later call continues where this one stopped.

    Args:
        scenes: what to make, as `Scene` or as a scene file holds it; their ids are unique.
        client: where to make it.
        output_dir: created if it does not exist; gets the files, `manifest.jsonl` and `index.html`.
        options: how to make it.
        disk: how files are written.
        clock: monotonic seconds.
        wait: seconds before the n-th attempt of a request.

    Raises:
        InvalidSceneFile: a scene breaks a rule; nothing was sent.
        ServerUnavailable: the server is absent for longer than the patience, or refuses the token.
        OutputError: a file cannot be written; the folder is in use or (`UnusableFolder`) cannot be used.
    """
    parsed = parse_scenes(list(scenes)) if scenes else []
    with closing(Store(Path(output_dir), disk)) as store:
        batch = _Batch(parsed, StageRunner(client, store, options or RenderOptions(), clock, wait))
        try:
            yield from batch.run()
        except (KeyboardInterrupt, GeneratorExit) as interruption:
            batch.stop()
            with suppress(OutputError):
                batch.draw_gallery()
            if isinstance(interruption, KeyboardInterrupt):
                yield batch.finished("interrupted")
            raise
        finally:
            batch.stop()


def render_all(
    scenes: Sequence[Scene | dict[str, Any]],
    client: Client,
    output_dir: str | Path,
    options: RenderOptions | None = None,
    on_event: Callable[[events.BatchEvent], None] = lambda event: None,
) -> events.BatchFinished:
    """Carry out a batch to its end, and return its last event. Takes and raises what `render` does.

    Args:
        on_event: called with every event.
    """
    for event in render(scenes, client, output_dir, options):
        on_event(event)
        if isinstance(event, events.BatchFinished):
            finished = event
    return finished


class _Batch:
    """The state of a batch. Apart from the runner, only the generator's thread touches it."""

    def __init__(self, scenes: Sequence[Scene], runner: StageRunner) -> None:
        self._runner, self._store, self._clock = runner, runner.store, runner.clock
        self._options = options = runner.options
        self._began = self._drawn_at = self._clock()
        self._order = [scene.id for scene in scenes]
        everything = [SceneProgress.of(scene, options.embed_recipe) for scene in scenes]
        wanted = [each for each in everything if not options.only or each.scene.id in options.only]
        self._scenes = {each.scene.id: each for each in wanted}
        self._gallery = Gallery(everything, self._store.record)
        self._watch = Watch(runner.client.server, options.concurrency)
        self._waiting = {Stage.T2I: deque(self._scenes.values()), Stage.I2V: deque[SceneProgress]()}
        self._running: Counter[Stage] = Counter()
        self._lost: set[Stage] = set()
        """Stages that cannot be used any more."""
        self._fatal: CloudVidError | None = None

    def run(self) -> Iterator[events.BatchEvent]:
        """Carry out the batch."""
        yield events.BatchStarted(scenes=len(self._scenes), output_dir=str(self._store.folder))
        if self._store.left_behind:
            self._runner.client.server.jobs.cancel_before(f"{self._store.left_behind}.")
        self._watch.start()
        while not self._watch.is_ready(_TICK_SECONDS):
            pass
        self._estimate = self._first_estimate()
        yield events.ModelsKnown(models=self._watch.models, seconds_left=self._seconds_left())
        while not self._is_unwritable() and not self._is_failed():
            self._give_up()
            while stage := self._next_stage():
                each = self._waiting[stage].popleft()
                yield from self._begin(each, stage)
                if self._options.fail_fast and each.end == "failed":
                    break
            if self._is_failed() or not self._running.total():
                break
            try:
                item = self._runner.inbox.get(timeout=_TICK_SECONDS)  # meanwhile a worker may become ready
            except queue.Empty:
                continue
            yield from self._finish(item) if isinstance(item, Finished) else [self._pass_on(item)]
        self.stop()
        if not self._is_unwritable():
            conclusions: list[Callable[[], None]] = [self.draw_gallery, lambda: self._store.close(self._order)]
            for conclude in conclusions:
                try:
                    conclude()
                except OutputError as error:
                    self._fatal = self._fatal if isinstance(self._fatal, NoRoom) else error
        yield self.finished("failed" if self._is_failed() else str(self._fatal) if self._fatal else None)
        if self._fatal is not None:
            raise self._fatal

    def _pass_on(self, event: events.BatchEvent) -> events.BatchEvent:
        """An event of a request under way, with the time that is left."""
        if isinstance(event, events.StageStarted) and event.attempt > 1:
            self._estimate.begin(self._task(self._scenes[event.scene], event.stage))
        if isinstance(event, events.StageProgress):
            self._estimate.step(event.scene, event.stage, event.phase, event.step, event.steps)
            return event.model_copy(update={"seconds_left": self._seconds_left()})
        return event

    def _first_estimate(self) -> Estimate:
        tasks = [self._task(each, asked.stage) for each in self._scenes.values() for asked in self._wanted(each)]
        return Estimate(tasks, self._watch.described, self._watch.workers, self._clock)

    def _wanted(self, each: SceneProgress) -> list[Asked]:
        """What of a scene has to be made, as far as the record tells."""
        record, models, force = self._store.record(each.scene.id), self._watch.models, self._options.force
        why = reasons(each.asked, record, self._store.folder, models, force=force, is_quick=True)
        return [each.asked[stage] for stage in Stage if why[stage]]

    def _task(self, each: SceneProgress, stage: Stage) -> Task:
        return Task.of(each.scene, each.asked[stage].request, self._watch.described.get(stage))

    def _seconds_left(self) -> float | None:
        self._estimate.workers = self._watch.workers
        left = self._estimate.left()
        return None if left is None else round(left, 1)

    def finished(self, stopped: str | None) -> events.BatchFinished:
        """The last event."""
        ends = Counter(each.end for each in self._scenes.values())
        return events.BatchFinished(
            scenes=len(self._scenes),
            done=ends["done"],
            skipped=ends["skipped"],
            failed=ends["failed"],
            cancelled=ends["cancelled"],
            requests=self._runner.requests,
            seconds=round(self._clock() - self._began, 3),
            stopped=stopped,
        )

    def stop(self) -> None:
        """Let nothing be sent, stored or reported from now on, and the server end what is in progress."""
        self._watch.stop()
        self._runner.stop()
        if not self._options.leave_running:
            self._runner.cancel()

    def draw_gallery(self, seconds_left: float | None = None) -> None:
        """Show what exists, and, while the batch runs, when the rest will."""
        self._drawn_at = self._clock()
        self._store.write(PAGE, self._gallery.page(seconds_left))

    def _is_failed(self) -> bool:
        return self._options.fail_fast and any(each.end == "failed" for each in self._scenes.values())

    def _is_unwritable(self) -> bool:
        """Whether nothing more can be stored, including what is in progress."""
        return isinstance(self._fatal, OutputError) and not isinstance(self._fatal, NoRoom)

    def _give_up(self) -> None:
        """Stop waiting for a stage that the server has given up; the other one continues."""
        for stage in Stage:
            if self._running[stage] and (error := self._watch.given_up(stage)):
                self._running[stage] = 0
                self._lost.add(stage)
                self._fatal = error

    def _next_stage(self) -> Stage | None:
        """A stage that can take a scene, clips first: finishing a scene is worth more than beginning one."""
        for stage in (Stage.I2V, Stage.T2I):
            if self._waiting[stage] and stage not in self._lost and self._running[stage] < self._watch.slots[stage]:
                return stage
        return None

    def _begin(self, each: SceneProgress, stage: Stage) -> Iterator[events.BatchEvent]:
        """Send a scene to a stage, or pass it on if there is nothing to do."""
        if stage is Stage.T2I and (refused := refusals(self._wanted(each), self._watch.described)):
            # A picture is not worth making if its clip would be refused.
            over, why = next(iter(refused.items()))
            yield from self._fail(each, over, Rejected(f"{over} would answer 422 InvalidParameters: {why}"))
            return
        asked, record = each.asked[stage], self._store.record(each.scene.id)
        model = self._watch.models[stage]
        reason = "forced" if self._options.force else asked.reason_to_run(record, self._store.folder, model)
        if reason:
            each.has_run = True
            self._estimate.begin(self._task(each, stage))
            self._running[stage] += 1
            self._runner.start(asked, reason)
        elif stage is Stage.T2I:
            self._waiting[Stage.I2V].append(each)
        else:
            yield self._end(each)

    def _finish(self, finished: Finished) -> Iterator[events.BatchEvent]:
        result, stage = finished.result, finished.asked.stage
        each = self._scenes[finished.asked.scene.id]
        self._running[stage] = max(0, self._running[stage] - 1)  # the stage may have been given up
        self._gallery.changed(each)
        if isinstance(result, CloudVidError):
            yield from self._fail(each, stage, result)
            return
        if self._watch.models[stage] != result.model:
            self._watch.models[stage] = result.model
            for other in self._scenes.values():
                if other.end == "skipped":  # compared with another model, or with none
                    other.end = None
                    for each_stage in Stage:
                        self._estimate.begin(self._task(other, each_stage))
                    self._waiting[Stage.T2I].append(other)
        self._estimate.end(each.scene.id, stage)
        yield result
        if stage is Stage.T2I:
            self._waiting[Stage.I2V].append(each)
        else:
            yield self._end(each)
        if self._clock() - self._drawn_at >= _GALLERY_SECONDS:
            with suppress(OutputError):  # the one at the end counts
                self.draw_gallery(self._seconds_left())

    def _fail(self, each: SceneProgress, stage: Stage, error: CloudVidError) -> Iterator[events.BatchEvent]:
        if isinstance(error, PictureChanged) and not each.is_redrawn:
            each.is_redrawn = True
            self._waiting[Stage.T2I].append(each)
        elif isinstance(error, ServerUnavailable):
            self._lost.add(stage)  # the other stage continues
            self._fatal = error
        elif isinstance(error, NoRoom):
            self._lost.update(Stage)  # what is in progress has its space reserved
            self._fatal = self._fatal or error
        elif isinstance(error, OutputError) and error.errno not in _ONE_FILE:
            self._fatal = error
        else:
            scene, name = each.scene.id, type(error).__name__
            self._estimate.drop(scene)
            self._gallery.changed(each)
            each.end, each.error = "cancelled" if isinstance(error, Cancelled) else "failed", str(error)
            self._store.fail(scene, Failure(stage=stage, error=name, message=str(error)))
            if each.end == "cancelled":
                yield events.SceneCancelled(scene=scene, stage=stage)
            else:
                yield events.SceneFailed(scene=scene, stage=stage, error=name, message=str(error))

    def _end(self, each: SceneProgress) -> events.SceneDone | events.SceneSkipped:
        self._estimate.drop(each.scene.id)
        each.end = "done" if each.has_run else "skipped"
        return (events.SceneDone if each.has_run else events.SceneSkipped)(scene=each.scene.id)
