"""Runs one stage of one scene as the options say: send, retry as the failure table says, store."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from cloudvid.batch.events import BatchEvent, StageDone, StageProgress, StageRetried, StageStarted
from cloudvid.batch.media import check_whole
from cloudvid.batch.progress import Asked, SceneProgress
from cloudvid.batch.store import Store, most_bytes
from cloudvid.client import Client
from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import Generated
from cloudvid.endpoints.failures import DOWN_SECONDS, Tries
from cloudvid_schema.protocol import MEDIA_TYPE, Progress, Stage, Started

logger = logging.getLogger(__name__)
_LOOKS, _LOOK_SECONDS = 5, 0.1  # TorchServe closes a dead worker's answers just before it counts the worker as down


@dataclass(frozen=True)
class RenderOptions:
    """How a batch is carried out."""

    force: bool = False
    """Make everything again."""
    only: Collection[str] = ()
    """Ids of the scenes to make; empty for all."""
    fail_fast: bool = False
    """Stop at the first scene that fails."""
    retries: int = 4
    """How often a request is sent again in total; waiting for a busy or absent server does not count."""
    patience: float = 900.0
    """Seconds to wait for a server that is busy or absent before a request is given up."""
    embed_recipe: bool = True
    """Whether the files carry their recipe."""
    concurrency: Mapping[Stage, int] = field(default_factory=dict)
    """Concurrent requests for a stage whose workers cannot be counted; default: the workers that a proxy counts on one
    host, else 1."""


@dataclass(frozen=True)
class Job:
    """A request to make."""

    progress: SceneProgress
    asked: Asked
    reason: str

    @property
    def scene(self) -> str:
        """Id of the scene."""
        return self.progress.scene.id


@dataclass(frozen=True)
class Finished:
    """The end of a job: a file that is on record, or an error."""

    job: Job
    result: StageDone | errors.CloudVidError


class _Stopped(Exception):
    """The batch has ended, so this job's result is not wanted."""


@dataclass
class StageRunner:
    """Runs jobs, each in a thread of its own, which puts events and the job's end into the inbox."""

    client: Client
    store: Store
    options: RenderOptions
    clock: Callable[[], float]
    wait: Callable[[int], float]
    """Seconds before the n-th attempt."""
    inbox: SimpleQueue[BatchEvent | Finished] = field(default_factory=SimpleQueue)
    requests: int = 0
    """Number of POSTs so far."""
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, job: Job) -> None:
        """Start a job. Its thread is a daemon: a program that ends does not wait for a clip of minutes."""
        threading.Thread(target=self._run, args=(job,), name=f"{job.asked.stage} {job.scene}", daemon=True).start()

    def stop(self) -> None:
        """Let no job send, store or report anything from now on."""
        self._stop.set()

    def _run(self, job: Job) -> None:
        try:
            with self.store.room_for(job.asked.file, most_bytes(job.asked.request, job.progress.scene.t2i_params)):
                made = self._send(job)
                self._pause()
                path = self.store.save(job.scene, job.asked, made)
            done = StageDone(
                scene=job.scene,
                stage=job.asked.stage,
                path=str(path),
                size=len(made.data),
                sha256=made.sha256,
                seed=made.seed,
                model=made.model,
                seconds=round(sum(made.timings.values()) / 1000, 3),
                warnings=made.warnings,
            )
            self.inbox.put(Finished(job, done))
        except _Stopped:
            pass
        except errors.CloudVidError as error:
            self.inbox.put(Finished(job, error))
        except Exception as error:  # a bug must fail the scene instead of leaving the batch waiting for it
            logger.exception("%s of scene %s failed", job.asked.stage, job.scene)
            text = f"{job.asked.stage}: {type(error).__name__}: {error}"
            self.inbox.put(Finished(job, errors.StageError(text)))

    def _send(self, job: Job) -> Generated:
        stage = job.asked.stage
        tries = Tries(self.options.retries, self.options.patience, self.clock)
        attempt = 0
        down_since: float | None = None
        while True:
            attempt += 1
            self._tell(job, StageStarted, reason=job.reason, attempt=attempt)
            tries.begin()
            try:
                return self._send_once(job)
            except (errors.StageError, errors.ServerUnavailable) as caught:
                error = self._cause(stage, caught)
                if not tries.allow(error):
                    raise error from None
                down_since = self._since_down(stage, down_since)
                wait = self.wait(attempt)
                name = type(error).__name__
                self._tell(job, StageRetried, error=name, message=str(error), wait_seconds=round(wait, 3))
            self._pause(wait)

    def _cause(self, stage: Stage, error: errors.CloudVidError) -> errors.CloudVidError:
        """The error, or its cause: a stream that a dead worker cut looks the same as one that the network cut."""
        if type(error) is not errors.BrokenAnswer:
            return error
        for _ in range(_LOOKS):
            try:
                seen = self.client.server.manage(stage)
            except errors.CloudVidError:
                return error
            if seen.ready < len(seen.workers):
                return errors.WorkerDied(f"{stage}: the worker died or stopped responding during its answer")
            self._pause(_LOOK_SECONDS)
        return error

    def _since_down(self, stage: Stage, since: float | None) -> float | None:
        """Since when the server has reported that the stage's workers fail to start; None if it does not.

        Raises:
            errors.Unhealthy: for longer than a worker needs to restart.
        """
        try:
            seen = self.client.server.look(stage)
        except errors.CloudVidError:
            return None
        if not seen.unhealthy or seen.ready:
            return None
        now = self.clock()
        since = now if since is None else since
        if now - since >= DOWN_SECONDS:
            raise errors.Unhealthy(f"{stage}: workers fail to start; see the server's log")
        return since

    def _send_once(self, job: Job) -> Generated:
        picture = self.store.picture(job.scene) if job.asked.stage is Stage.I2V else None
        self._pause()
        with self._counting:
            self.requests += 1
        result = self.client.send(job.asked.request, picture, on_event=lambda event: self._pass_on(job, event))
        check_whole(result.data, MEDIA_TYPE[job.asked.stage])
        return result

    def _pass_on(self, job: Job, event: Started | Progress) -> None:
        self._pause()
        if isinstance(event, Progress):
            self._tell(job, StageProgress, **event.model_dump(exclude={"event"}))

    def _pause(self, seconds: float = 0.0) -> None:
        """Wait, unless the batch ends."""
        if self._stop.wait(seconds):
            raise _Stopped

    def _tell(self, job: Job, event: Callable[..., BatchEvent], **values: Any) -> None:
        self.inbox.put(event(scene=job.scene, stage=job.asked.stage, **values))
