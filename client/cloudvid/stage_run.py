"""One stage of one scene: sent, sent again where the failure table says so, stored, put on record."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloudvid.answers import Generated
from cloudvid.client import Client
from cloudvid.decisions import file_name
from cloudvid.errors import BrokenAnswer, CloudVidError, ServerUnavailable, StageError, Unhealthy, WorkerDied
from cloudvid.events import BatchEvent, StageProgress, StageRetried, StageStarted
from cloudvid.failures import DOWN_SECONDS, Tries
from cloudvid.manifest import NAME, Entry, Manifest, Record, canonical, request_digest
from cloudvid.media_files import check_whole
from cloudvid.outputs import Disk, write_file
from cloudvid.room import Room, most_bytes
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import MEDIA_TYPE, ImageToVideoRequest, Progress, Stage, Started, TextToImageRequest

_LOOKS, _LOOK_SECONDS = 5, 0.1  # TorchServe ends a dead worker's answers a moment before it counts the worker as down


@dataclass(frozen=True)
class Job:
    """One request to make."""

    scene: Scene
    stage: Stage
    request: TextToImageRequest | ImageToVideoRequest
    reason: str
    picture: Entry | None = None
    """Of a clip: its picture, on record."""


@dataclass(frozen=True)
class Finished:
    """The end of a job: an entry that is on record, or an error."""

    job: Job
    entry: Entry | None = None
    seconds: float = 0.0
    error: CloudVidError | None = None


class PictureChanged(StageError):
    """A clip's picture is not the one on record any more."""


class _Stopped(Exception):
    """The batch has ended; this job's result is not wanted."""


class StageRunner:
    """Carries out jobs, one thread each.

    Args:
        client: where to send them.
        manifest: where files are put on record.
        folder: where they go.
        disk: how files are written.
        report: told of events and of each job's end; called from the jobs' threads.
        retries: how often a job's request is sent again in all.
        patience: seconds to wait for a server that is busy or away.
        clock: monotonic seconds.
        backoff: seconds to wait before the n-th try.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        *,
        folder: Path,
        disk: Disk,
        report: Callable[[BatchEvent | Finished], None],
        retries: int,
        patience: float,
        clock: Callable[[], float],
        backoff: Callable[[int], float],
    ) -> None:
        self._client, self._folder, self._manifest, self._disk = client, folder, manifest, disk
        self._report, self._retries, self._patience = report, retries, patience
        self._clock, self._backoff = clock, backoff
        self._room = Room(folder, folder / NAME, disk)
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self.requests = 0
        """POSTs made so far."""

    def start(self, job: Job) -> None:
        """Begin a job. Its thread is a daemon: a program that ends does not wait for a clip of minutes."""
        threading.Thread(target=self._run, args=(job,), name=f"{job.stage} {job.scene.id}", daemon=True).start()

    def stop(self) -> None:
        """Let no job send, store or report anything more."""
        self._stop.set()

    def _run(self, job: Job) -> None:
        try:
            with self._room.promised(file_name(job.scene, job.stage), most_bytes(job.request, job.scene.t2i_request())):
                result = self._send(job)
                entry = self._store(job, result)
            self._report(Finished(job, entry, sum(result.timings.values()) / 1000))
        except _Stopped:
            pass
        except CloudVidError as error:
            self._report(Finished(job, error=error))
        except Exception as error:  # a defect of ours must end the scene, not leave the batch waiting for it
            self._report(Finished(job, error=StageError(f"{job.stage}: {type(error).__name__}: {error}")))

    def _send(self, job: Job) -> Generated:
        tries = Tries(self._retries, self._patience, self._clock)
        attempt = 0
        down_since: float | None = None
        while True:
            attempt += 1
            self._report(StageStarted(scene=job.scene.id, stage=job.stage, reason=job.reason, attempt=attempt))
            tries.begin()
            try:
                return self._send_once(job)
            except (StageError, ServerUnavailable) as caught:
                error = self._cause(job.stage, caught)
                if isinstance(error, PictureChanged) or not tries.allow(error):
                    raise error from None
                down_since = self._since_down(job.stage, down_since)
                wait = self._backoff(attempt)
                self._report(
                    StageRetried(
                        scene=job.scene.id,
                        stage=job.stage,
                        error=type(error).__name__,
                        message=str(error),
                        wait_seconds=round(wait, 3),
                    )
                )
            if self._stop.wait(wait):
                raise _Stopped

    def _cause(self, stage: Stage, error: StageError | ServerUnavailable) -> StageError | ServerUnavailable:
        """The error, or what brought it about: a stream looks the same whether a worker or a network cut it."""
        if type(error) is not BrokenAnswer:
            return error
        for _ in range(_LOOKS):
            try:
                readiness = self._client.readiness(stage)
            except CloudVidError:
                return error
            if readiness is None:
                return error
            if readiness.ready < readiness.workers:
                return WorkerDied(
                    f"{stage}: the worker died, or gave no sign of life for too long, in the middle of its answer"
                )
            if self._stop.wait(_LOOK_SECONDS):
                raise _Stopped
        return error

    def _since_down(self, stage: Stage, since: float | None) -> float | None:
        """Since when the server says that workers do not come up, asked after each failure.

        Raises:
            Unhealthy: for longer than a worker takes to come back.
        """
        if self._client.is_healthy(stage):
            return None
        now = self._clock()
        since = now if since is None else since
        if now - since >= DOWN_SECONDS:
            raise Unhealthy(f"{stage}: workers do not come up; the server's log says why")
        return since

    def _send_once(self, job: Job) -> Generated:
        picture = None
        if job.picture is not None:
            path = self._folder / job.picture.file
            picture = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(picture).hexdigest() != job.picture.sha256:
                raise PictureChanged(f"{path} has changed since it was made")
        if self._stop.is_set():
            raise _Stopped
        with self._counting:
            self.requests += 1
        result = self._client.send(job.request, picture, on_event=lambda event: self._pass_on(job, event))
        check_whole(result.data, MEDIA_TYPE[job.stage])
        return result

    def _pass_on(self, job: Job, event: Started | Progress) -> None:
        if self._stop.is_set():
            raise _Stopped
        if isinstance(event, Progress):
            values = event.model_dump(exclude={"event"})
            self._report(StageProgress(scene=job.scene.id, stage=job.stage, **values))

    def _store(self, job: Job, result: Generated) -> Entry:
        """Files first, then the record: what the manifest names is on the disk."""
        if self._stop.is_set():
            raise _Stopped
        path = write_file(self._folder / file_name(job.scene, job.stage), result.data, self._disk)
        entry = Entry(
            file=path.name,
            size=len(result.data),
            sha256=result.sha256,
            seed=result.seed,
            model=result.model,
            warnings=result.warnings or None,
            picture_sha256=job.picture.sha256 if job.picture else None,
            request_sha256=request_digest(job.request),
            request=canonical(job.request),
        )
        old = self._manifest.records.get(job.scene.id)
        if job.stage is Stage.I2V:
            record = Record(id=job.scene.id, t2i=job.picture, i2v=entry)
        else:  # a clip of another picture stays on record, as just that
            record = Record(id=job.scene.id, t2i=entry, i2v=old.i2v if old else None)
        self._manifest.add(record)
        return entry
