"""Runs one stage of one scene: send, retry as the failure table says, store."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cloudvid.batch.events import BatchEvent, StageProgress, StageRetried, StageStarted
from cloudvid.batch.manifest import Entry
from cloudvid.batch.media import check_whole
from cloudvid.batch.options import RenderOptions
from cloudvid.batch.progress import Asked, SceneProgress
from cloudvid.batch.store import Store, most_bytes
from cloudvid.client import Client
from cloudvid.endpoints.answers import Generated
from cloudvid.endpoints.errors import (
    BrokenAnswer,
    CloudVidError,
    ServerUnavailable,
    StageError,
    Unhealthy,
    WorkerDied,
)
from cloudvid.endpoints.failures import DOWN_SECONDS, Tries
from cloudvid_schema.protocol import MEDIA_TYPE, Progress, Stage, Started

logger = logging.getLogger(__name__)
_LOOKS, _LOOK_SECONDS = 5, 0.1  # TorchServe closes a dead worker's answers just before it counts the worker as down


@dataclass(frozen=True)
class Job:
    """A request to make."""

    progress: SceneProgress
    asked: Asked
    reason: str
    picture: Entry | None = None
    """For a clip: the entry of its picture."""

    @property
    def scene(self) -> str:
        """Id of the scene."""
        return self.progress.scene.id


@dataclass(frozen=True)
class Finished:
    """The end of a job: an entry that is on record, or an error."""

    job: Job
    entry: Entry | None = None
    seconds: float = 0.0
    error: CloudVidError | None = None


class _Stopped(Exception):
    """The batch has ended, so this job's result is not wanted."""


class StageRunner:
    """Runs jobs, each in a thread of its own.

    Args:
        client: sends the requests.
        store: keeps the files.
        options: how often and how long to retry.
        report: called with events and with every job's end, from the jobs' threads.
    """

    def __init__(
        self, client: Client, store: Store, options: RenderOptions, report: Callable[[BatchEvent | Finished], None]
    ) -> None:
        self._client, self._store, self._options, self._report = client, store, options, report
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self.requests = 0
        """Number of POSTs so far."""

    def start(self, job: Job) -> None:
        """Start a job. Its thread is a daemon: a program that ends does not wait for a clip of minutes."""
        threading.Thread(target=self._run, args=(job,), name=f"{job.asked.stage} {job.scene}", daemon=True).start()

    def stop(self) -> None:
        """Let no job send, store or report anything from now on."""
        self._stop.set()

    def _run(self, job: Job) -> None:
        try:
            picture_request = job.progress.asked[Stage.T2I].request
            with self._store.room_for(job.asked.file, most_bytes(job.asked.request, picture_request)):  # type: ignore[arg-type]
                result = self._send(job)
                if self._stop.is_set():
                    return
                entry = self._store.save(job.scene, job.asked, result, job.picture)
            self._report(Finished(job, entry, sum(result.timings.values()) / 1000))
        except _Stopped:
            pass
        except CloudVidError as error:
            self._report(Finished(job, error=error))
        except Exception as error:  # a bug must fail the scene instead of leaving the batch waiting for it
            logger.exception("%s of scene %s failed", job.asked.stage, job.scene)
            text = f"{job.asked.stage}: {type(error).__name__}: {error}"
            self._report(Finished(job, error=StageError(text)))

    def _send(self, job: Job) -> Generated:
        stage = job.asked.stage
        tries = Tries(self._options.retries, self._options.patience, self._options.clock)
        attempt = 0
        down_since: float | None = None
        while True:
            attempt += 1
            self._report(StageStarted(scene=job.scene, stage=stage, reason=job.reason, attempt=attempt))
            tries.begin()
            try:
                return self._send_once(job)
            except (StageError, ServerUnavailable) as caught:
                error = self._cause(stage, caught)
                if not tries.allow(error):
                    raise error from None
                down_since = self._since_down(stage, down_since)
                wait = self._options.backoff(attempt)
                self._report(
                    StageRetried(
                        scene=job.scene,
                        stage=stage,
                        error=type(error).__name__,
                        message=str(error),
                        wait_seconds=round(wait, 3),
                    )
                )
            if self._stop.wait(wait):
                raise _Stopped

    def _cause(self, stage: Stage, error: StageError | ServerUnavailable) -> StageError | ServerUnavailable:
        """The error, or its cause: a stream that a dead worker cut looks the same as one that the network cut."""
        if type(error) is not BrokenAnswer:
            return error
        for _ in range(_LOOKS):
            try:
                seen = self._client.server.manage(stage)
            except CloudVidError:
                return error
            if seen.ready < len(seen.workers):
                return WorkerDied(f"{stage}: the worker died or stopped responding during its answer")
            if self._stop.wait(_LOOK_SECONDS):
                raise _Stopped
        return error

    def _since_down(self, stage: Stage, since: float | None) -> float | None:
        """Since when the server has reported that the stage's workers fail to start; None if it does not.

        Raises:
            Unhealthy: for longer than a worker needs to restart.
        """
        try:
            seen = self._client.server.look(stage)
        except CloudVidError:
            return None
        if not seen.unhealthy or seen.ready:
            return None
        now = self._options.clock()
        since = now if since is None else since
        if now - since >= DOWN_SECONDS:
            raise Unhealthy(f"{stage}: workers fail to start; see the server's log")
        return since

    def _send_once(self, job: Job) -> Generated:
        picture = self._store.picture(job.picture) if job.picture else None
        if self._stop.is_set():
            raise _Stopped
        with self._counting:
            self.requests += 1
        result = self._client.send(job.asked.request, picture, on_event=lambda event: self._pass_on(job, event))
        check_whole(result.data, MEDIA_TYPE[job.asked.stage])
        return result

    def _pass_on(self, job: Job, event: Started | Progress) -> None:
        if self._stop.is_set():
            raise _Stopped
        if isinstance(event, Progress):
            values = event.model_dump(exclude={"event"})
            self._report(StageProgress(scene=job.scene, stage=job.asked.stage, **values))
