"""Runs one stage of one scene as the options say: send, retry as the failure table says, store."""

import logging
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from cloudvid.batch.events import BatchEvent, StageDone, StageProgress, StageRetried, StageStarted
from cloudvid.batch.media import check_whole
from cloudvid.batch.progress import Asked
from cloudvid.batch.store import Store, most_bytes
from cloudvid.client import Client
from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import Generated
from cloudvid.endpoints.failures import DOWN_SECONDS, Tries, tries_of
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
    leave_running: bool = False
    """Let the server finish what is in progress when the batch is interrupted, instead of cancelling it."""
    embed_recipe: bool = True
    """Whether the files carry their recipe."""
    concurrency: Mapping[Stage, int] = field(default_factory=dict)
    """Concurrent requests for a stage whose workers cannot be counted; default: the workers that a proxy counts on one
    host, else 1."""


@dataclass(frozen=True)
class Finished:
    """The end of a request: a file that is on record, or an error."""

    asked: Asked
    result: StageDone | errors.CloudVidError


class _Stopped(Exception):
    """The batch has ended, so this result is not wanted."""


@dataclass
class StageRunner:
    """Sends requests, each in a thread of its own, which puts events and the request's end into the inbox."""

    client: Client
    store: Store
    options: RenderOptions
    clock: Callable[[], float]
    wait: Callable[[int], float]
    """Seconds before the n-th attempt."""
    inbox: SimpleQueue[BatchEvent | Finished] = field(default_factory=SimpleQueue)
    requests: int = 0
    """Number of POSTs so far."""
    _sent: dict[str, Stage] = field(default_factory=dict)
    """Jobs that the server has, or will have in a moment."""
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self, asked: Asked, reason: str) -> None:
        """Start a request. Its thread is a daemon: a program that ends does not wait for a clip of minutes."""
        name = f"{asked.stage} {asked.scene.id}"
        threading.Thread(target=self._run, args=(asked, reason), name=name, daemon=True).start()

    def stop(self) -> None:
        """Let nothing be sent, stored or reported from now on."""
        self._stop.set()

    def cancel(self) -> None:
        """Ask the server to end what is in progress: its results are no longer wanted."""
        with self._counting:
            sent, self._sent = self._sent, {}
        self.client.server.jobs.cancel_these(sent.items())

    def _run(self, asked: Asked, reason: str) -> None:
        try:
            with self.store.room_for(asked.file, most_bytes(asked.request, asked.scene.t2i_params)):
                made = self._send(asked, reason)
                self._pause()
                path = self.store.save(asked, made)
            done = StageDone(
                scene=asked.scene.id,
                stage=asked.stage,
                path=str(path),
                size=len(made.data),
                sha256=made.sha256,
                seed=made.seed,
                model=made.model,
                seconds=round(sum(made.timings.values()) / 1000, 3),
                warnings=made.warnings,
            )
            self.inbox.put(Finished(asked, done))
        except _Stopped:
            pass
        except errors.CloudVidError as error:
            self.inbox.put(Finished(asked, error))
        except Exception as error:  # a bug must fail the scene instead of leaving the batch waiting for it
            logger.exception("%s of scene %s failed", asked.stage, asked.scene.id)
            self.inbox.put(Finished(asked, errors.StageError(f"{asked.stage}: {type(error).__name__}: {error}")))

    def _send(self, asked: Asked, reason: str) -> Generated:
        tries = Tries(self.options.retries, self.options.patience, self.clock)
        job = f"{self.store.batch}.{secrets.token_hex(4)}.{asked.scene.id}"  # of all attempts: cancelled, none begins
        attempt = 0
        down_since: float | None = None
        while True:
            attempt += 1
            self._tell(asked, StageStarted, reason=reason, attempt=attempt)
            tries.begin()
            try:
                return self._send_once(asked, job)
            except (errors.StageError, errors.ServerUnavailable) as caught:
                error = self._cause(asked.stage, caught)
                if not tries.allow(error):
                    raise error from None
                down_since = self._since_down(asked.stage, down_since)
                wait = self.wait(attempt)
                self._tell(
                    asked,
                    StageRetried,
                    error=type(error).__name__,
                    message=str(error),
                    wait_seconds=round(wait, 3),
                    patience=self.options.patience if tries_of(error) is None else None,
                )
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
        since = self.clock() if since is None else since
        if self.clock() - since >= DOWN_SECONDS:
            raise errors.Unhealthy(f"{stage}: workers fail to start; see the server's log")
        return since

    def _send_once(self, asked: Asked, job: str) -> Generated:
        def pass_on(event: Started | Progress) -> None:
            self._pause()
            if isinstance(event, Progress):
                self._tell(asked, StageProgress, **event.model_dump(exclude={"event"}))

        picture = self.store.picture(asked.scene.id) if asked.stage is Stage.I2V else None
        with self._counting:
            self._pause()
            self.requests += 1
            self._sent[job] = asked.stage
        try:
            result = self.client.send(asked.request, picture, on_event=pass_on, job=job)
        finally:
            with self._counting:
                if not self._stop.is_set():  # else it is left to be cancelled
                    del self._sent[job]
        check_whole(result.data, MEDIA_TYPE[asked.stage])
        return result

    def _pause(self, seconds: float = 0.0) -> None:
        """Wait, unless the batch ends."""
        if self._stop.wait(seconds):
            raise _Stopped

    def _tell(self, asked: Asked, event: Callable[..., BatchEvent], **values: Any) -> None:
        self.inbox.put(event(scene=asked.scene.id, stage=asked.stage, **values))
