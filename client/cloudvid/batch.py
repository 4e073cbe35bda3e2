"""The batch: each scene's picture, then its clip, both stages at work at once, resumable at any moment.

One thread a request, and only as many requests as a stage has READY workers, and one that waits. The generator
itself decides, in the caller's thread; the threads send, store and report. What is finished is on record before it
is reported.
"""

import errno
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cloudvid.client import Client
from cloudvid.decisions import entry_of, reason_to_run, request_of
from cloudvid.errors import CloudVidError, NoRoom, OutputError, ServerUnavailable
from cloudvid.events import (
    BatchEvent,
    BatchFinished,
    BatchStarted,
    SceneDone,
    SceneFailed,
    SceneSkipped,
    StageDone,
)
from cloudvid.failures import backoff
from cloudvid.gallery import write_gallery
from cloudvid.manifest import Manifest
from cloudvid.outputs import DISK, Disk
from cloudvid.render_options import RenderOptions
from cloudvid.scenes import Scene
from cloudvid.slots import Slots
from cloudvid.stage_run import Finished, Job, PictureChanged, StageRunner
from cloudvid_schema.protocol import Stage

_TICK_SECONDS = 1.0
_GALLERY_SECONDS = 10.0
_ONE_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Reasons why one file cannot be written and the others can."""


def render(
    scenes: Sequence[Scene],
    client: Client,
    output_dir: str | Path,
    options: RenderOptions | None = None,
    *,
    disk: Disk = DISK,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[int], float] = backoff,
) -> Generator[BatchEvent, None, None]:
    """Make every scene's picture and clip, and say what happens as it happens.

    What is there and intact is skipped; what changed is made again from the stage that the change affects. The last
    event is `BatchFinished`, whatever ended the batch. Closing the generator stops it; `render` goes on from there.

    Args:
        scenes: what to make; ids are unique.
        client: where to make it.
        output_dir: made if it is not there; holds the files, `manifest.jsonl` and `index.html`.
        options: how.
        disk: how files are written.
        clock: monotonic seconds.
        wait: seconds before the n-th try of a request.

    Raises:
        ServerUnavailable: the server is away for longer than the patience, or refuses the token.
        OutputError: a file cannot be written; the folder is another cloudvid's, or (`UnusableFolder`) cannot be used.
    """
    output_dir = Path(output_dir)
    manifest = Manifest(output_dir, disk)
    try:
        batch = _Batch(
            scenes, client, manifest, folder=output_dir, options=options or RenderOptions(), disk=disk, clock=clock,
            wait=wait,
        )  # fmt: skip
        try:
            yield from batch.events()
        except (GeneratorExit, KeyboardInterrupt):
            batch.leave()
            raise
        finally:
            batch.stop()
    finally:
        with suppress(OutputError):
            manifest.close()


class _Batch:
    """The state of a batch; but for the manifest and the inbox, the generator's thread alone touches it."""

    def __init__(
        self, scenes: Sequence[Scene], client: Client, manifest: Manifest, *, folder: Path, options: RenderOptions,
        disk: Disk, clock: Callable[[], float], wait: Callable[[int], float],
    ) -> None:  # fmt: skip
        self._began = self._drawn_at = clock()
        self._all, self._folder, self._options, self._disk, self._clock = scenes, folder, options, disk, clock
        self._scenes = [scene for scene in scenes if not options.only or scene.id in options.only]
        self._manifest, self._records = manifest, manifest.records
        self._inbox: queue.SimpleQueue[BatchEvent | Finished] = queue.SimpleQueue()
        self._runner = StageRunner(
            client, manifest, folder=folder, disk=disk, report=self._inbox.put, retries=options.retries,
            patience=options.patience, clock=clock, backoff=wait,
        )  # fmt: skip
        self._slots = Slots(client, options.concurrency)
        self._waiting = {Stage.T2I: deque(self._scenes), Stage.I2V: deque[Scene]()}
        self._running = dict.fromkeys(Stage, 0)
        self._models = self._slots.models
        self._touched: set[str] = set()
        self._failed: dict[str, str] = {}
        self._skipped: list[Scene] = []
        self._gone: set[Stage] = set()
        self._fatal: CloudVidError | None = None
        self._redrawn: set[str] = set()
        self._done = 0

    def events(self) -> Iterator[BatchEvent]:
        """Carry the batch out."""
        yield BatchStarted(scenes=len(self._scenes), output_dir=str(self._folder), models=self._models)
        stopped: str | None = None
        while stopped is None:
            self._abandon()
            yield from self._dispatch()
            if not any(self._running.values()) and not any(self._queue(stage) for stage in Stage):
                break
            try:
                item = self._inbox.get(timeout=_TICK_SECONDS)  # a worker may have become ready meanwhile
            except queue.Empty:
                continue
            if not isinstance(item, Finished):
                yield item
                continue
            yield from self._finish(item)
            if self._is_unwritable():
                stopped = str(self._fatal)
            elif self._failed and self._options.fail_fast:
                stopped = "failed"
        self.stop()
        if not self._is_unwritable():
            try:
                self._settle()
            except OutputError as error:
                self._fatal = self._fatal if isinstance(self._fatal, NoRoom) else error
        yield BatchFinished(
            scenes=len(self._scenes),
            done=self._done,
            skipped=len(self._skipped),
            failed=len(self._failed),
            requests=self._runner.requests,
            seconds=round(self._clock() - self._began, 3),
            stopped=stopped or (str(self._fatal) if self._fatal else None),
        )
        if self._fatal is not None:
            raise self._fatal

    def _is_unwritable(self) -> bool:
        """Whether nothing more can be stored, not even what is under way."""
        return isinstance(self._fatal, OutputError) and not isinstance(self._fatal, NoRoom)

    def _queue(self, stage: Stage) -> deque[Scene]:
        """Scenes that wait for a stage, as long as its server can be had at all."""
        return deque() if stage in self._gone else self._waiting[stage]

    def _abandon(self) -> None:
        """Wait no longer for a stage that the server has given up; the other goes on with what it has."""
        for stage in Stage:
            if self._running[stage] and (error := self._slots.given_up(stage)):
                self._running[stage] = 0
                self._gone.add(stage)
                self._fatal = error

    def stop(self) -> None:
        """Let nothing more be sent, stored or reported."""
        self._slots.stop()
        self._runner.stop()

    def leave(self) -> None:
        """The end of a batch that is interrupted: what is there can be looked at."""
        self.stop()
        with suppress(OutputError):
            self._draw_gallery()

    def _settle(self) -> None:
        """The end of a batch: the gallery, and the manifest in the scenes' order."""
        try:
            self._draw_gallery()
        finally:
            self._manifest.close([scene.id for scene in self._all])

    def _draw_gallery(self) -> None:
        self._drawn_at = self._clock()
        write_gallery(self._folder, self._all, self._records, self._failed, self._disk)

    def _dispatch(self) -> Iterator[BatchEvent]:
        """Begin what can be begun, clips first: a scene that is finished is worth more than one that is begun."""
        while True:
            if self._has_slot(Stage.I2V):
                yield from self._animate(self._waiting[Stage.I2V].popleft())
            elif self._has_slot(Stage.T2I):
                self._draw(self._waiting[Stage.T2I].popleft())
            else:
                return

    def _has_slot(self, stage: Stage) -> bool:
        return bool(self._queue(stage)) and self._running[stage] < self._slots.count(stage)

    def _draw(self, scene: Scene) -> None:
        request = request_of(scene, Stage.T2I, self._options.embed_recipe)
        entry = entry_of(self._records.get(scene.id), Stage.T2I)
        reason = reason_to_run(request, scene.picture_name, entry, self._folder, model=self._models[Stage.T2I])
        reason = "forced" if self._options.force else reason
        if reason is None:
            self._waiting[Stage.I2V].append(scene)
        else:
            self._start(Job(scene, Stage.T2I, request, reason))

    def _animate(self, scene: Scene) -> Iterator[BatchEvent]:
        request = request_of(scene, Stage.I2V, self._options.embed_recipe)
        record = self._records[scene.id]
        picture = record.t2i
        digest, model = picture.sha256 if picture else None, self._models[Stage.I2V]
        name = scene.video_name
        reason = reason_to_run(request, name, record.i2v, self._folder, model=model, picture_sha256=digest)
        reason = "forced" if self._options.force else reason
        if reason is not None:
            self._start(Job(scene, Stage.I2V, request, reason, picture))
        elif scene.id in self._touched:
            yield self._scene_done(scene)
        else:
            self._skipped.append(scene)
            yield SceneSkipped(scene=scene.id)

    def _start(self, job: Job) -> None:
        self._running[job.stage] += 1
        self._touched.add(job.scene.id)
        self._runner.start(job)

    def _finish(self, finished: Finished) -> Iterator[BatchEvent]:
        job, entry = finished.job, finished.entry
        self._running[job.stage] = max(0, self._running[job.stage] - 1)  # it may have been abandoned
        if entry is None:
            yield from self._fail(job, finished.error or CloudVidError("no result"))
            return
        self._learn_model(job.stage, entry.model)
        yield StageDone(
            scene=job.scene.id,
            stage=job.stage,
            path=str(self._folder / entry.file),
            size=entry.size,
            sha256=entry.sha256,
            seed=entry.seed,
            model=entry.model,
            seconds=round(finished.seconds, 3),
            warnings=entry.warnings or (),
        )
        if job.stage is Stage.T2I:
            self._waiting[Stage.I2V].append(job.scene)
        else:
            yield self._scene_done(job.scene)
        if self._clock() - self._drawn_at >= _GALLERY_SECONDS:
            with suppress(OutputError):  # the one at the end counts
                self._draw_gallery()

    def _fail(self, job: Job, error: CloudVidError) -> Iterator[BatchEvent]:
        if isinstance(error, PictureChanged) and job.scene.id not in self._redrawn:
            self._redrawn.add(job.scene.id)
            self._waiting[Stage.T2I].append(job.scene)
        elif isinstance(error, ServerUnavailable):
            self._gone.add(job.stage)  # the other stage goes on with what it has
            self._fatal = error
        elif isinstance(error, NoRoom):
            self._gone.update(Stage)  # what is under way has its place
            self._fatal = self._fatal or error
        elif isinstance(error, OutputError) and error.errno not in _ONE_FILE:
            self._fatal = error
        else:
            self._failed[job.scene.id] = str(error)
            yield SceneFailed(scene=job.scene.id, stage=job.stage, error=type(error).__name__, message=str(error))

    def _learn_model(self, stage: Stage, model: str) -> None:
        """Scenes that were skipped while another model was expected, or none was known, are looked at again."""
        if self._models[stage] == model:
            return
        self._models[stage] = model
        again, self._skipped = self._skipped, []
        self._waiting[Stage.T2I].extend(again)

    def _scene_done(self, scene: Scene) -> SceneDone:
        self._done += 1
        return SceneDone(scene=scene.id)
