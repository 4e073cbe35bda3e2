"""Asks a model server about its stages, waits for them and scales them.

Two properties of TorchServe 0.12 (both measured) decide how its management API is used:

- `?customized=true` waits in the stage's queue behind the jobs, and stays there after the caller has gone. So it is
  asked only if a worker is ready and nothing is queued, one question at a time, and an answer is used until the next
  one.
- `synchronous=true` blocks one of the server's few network threads, and all connections on it, until the workers are
  loaded. So it is not used: the state is polled instead.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import error_body, no_workers, told
from cloudvid.endpoints.connection import CONNECT_SECONDS, Connection, is_local, next_port
from cloudvid.server.jobs import Jobs
from cloudvid.server.local import last_error, resident_bytes, server_in, worker_log
from cloudvid.server.state import StageStatus, Worker, read_status
from cloudvid_schema.ports import EXPORTER, MANAGEMENT
from cloudvid_schema.protocol import Description, ErrorBody, Stage

_PATIENCE_SECONDS = 1.0
_QUESTION_SECONDS = 3600.0
_KEY_FILE_SECONDS = 15.0
_UNHEALTHY_SECONDS = 20.0  # a worker that died is back sooner; one that cannot load never is
_POLL_SECONDS = 0.5


@dataclass(eq=False, repr=False)
class Server:
    """The model servers behind the two endpoints; usually both are the same one."""

    connection: Connection
    urls: Mapping[Stage, str]
    """Address of each stage's endpoint."""
    management: Mapping[Stage, str]
    """Address of each stage's management API."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chosen_by: str = "given"
    """Why these addresses are used."""
    guesses_management: bool = False
    """Whether the management APIs' addresses follow from the endpoints', and were not given."""
    _questions: dict[Stage, "_Question"] = field(default_factory=dict, init=False)
    _answered: dict[Stage, "_Question"] = field(default_factory=dict, init=False)

    @cached_property
    def jobs(self) -> Jobs:
        """What waits and runs."""
        return Jobs(self.connection, self._beside)

    @property
    def key_file(self) -> Path | None:
        """TorchServe's key file, if one is used."""
        return self.connection.credentials.key_file

    def ping(self, stage: Stage) -> int:
        """HTTP status of `/ping` at a stage's server: 200 even while workers load or if there are none, 500 once a
        worker of any stage has been given up.

        Raises:
            ServerUnavailable: nothing answers, or the token is refused.
        """
        return self.answer_to_ping(stage).code

    def answer_to_ping(self, stage: Stage) -> ErrorBody:
        """The same with the answer's words.

        Raises:
            ServerUnavailable: nothing answers, or the token is refused.
        """
        # The stage tells a proxy with two servers behind it which one is meant. If only the path decides, it is a 404.
        for query in ({"stage": stage}, {}):
            with self.connection.call("GET", f"{self.urls[stage]}/ping", "inference", params=query) as response:
                status, content = response.status_code, response.content
            if status != 404:
                break
        return error_body(status, content).model_copy(update={"code": status})

    def is_unhealthy(self, stage: Stage) -> bool:
        """Whether the server answers and has given up a worker (of any stage)."""
        try:
            return self.ping(stage) == 500
        except errors.CloudVidError:
            return False

    def look(self, stage: Stage) -> StageStatus:
        """The state of a stage, from whatever can be asked: `/ping`, then the management API or else a proxy.

        Raises:
            Unreachable: nothing answers at the endpoint's address.
            Unauthorized: the token is refused.
            NotReady: the server does not have the stage's model.
        """
        ping = self.answer_to_ping(stage)
        try:
            seen = self.manage(stage)
        except (errors.Unreachable, errors.Unauthorized):
            seen = self._behind_proxy(stage)
        update = {"ping": ping.code, "ping_text": told(ping), "unhealthy": ping.code == 500}
        return seen.model_copy(update=update)

    def reach_management(self, stage: Stage) -> StageStatus:
        """As `manage`, but no error is about an address that the caller never gave.

        Raises:
            ServerUnavailable: the server or its management API cannot be asked.
        """
        try:
            return self.manage(stage)
        except (errors.Unreachable, errors.Unauthorized):
            if not self.guesses_management:
                raise
            self.ping(stage)
            known = f"{self.urls[stage]} answers, but its management API cannot be asked from here"
            remedy = "run this on the server's host, or give the API's address and key (--management, --key-file)"
            raise errors.Unreachable(f"{known}: {remedy}") from None

    def manage(self, stage: Stage) -> StageStatus:
        """The state of a stage from the management API, which answers at once even if the stage is busy.

        Raises:
            Unreachable: the management API does not answer, or something else does.
            Unauthorized: the key is refused or missing.
            NotReady: the server does not have the stage's model.
        """
        with self.connection.call("GET", self._model_url(stage), "management") as response:
            self._check(stage, response.status_code, response.content)
            try:
                seen = read_status(stage, self.management[stage], response.json()[0])
            except (AttributeError, LookupError, TypeError, ValueError):
                text = f"{self._model_url(stage)} is not a management API of TorchServe"
                raise errors.Unreachable(text) from None
        if not self._runs_here(seen.server):
            return seen
        return seen.model_copy(update={"workers": tuple(map(_observed, seen.workers))})

    def status(self, stage: Stage, patience: float = _PATIENCE_SECONDS) -> StageStatus:
        """The state of a stage from the management API, with a worker's description of itself.

        The description is waited for as long as `patience`, in seconds.

        Raises:
            ServerUnavailable: the management API cannot be asked.
        """
        question = self._questions.get(stage)
        seen = self.manage(stage)
        if seen.ready and (description := self.jobs.description(stage)) is not None:
            running = sum(job.state == "running" for job in self.jobs.listed(stage))
            update = {"description": description, "busy": running >= seen.ready, "unhealthy": self.is_unhealthy(stage)}
            return seen.model_copy(update=update)
        # A question that no worker has taken yet counts as ours, not as a queued request.
        is_waiting = question is not None and not question.done()
        queue = max(0, seen.queue - is_waiting)
        pids = {worker.pid for worker in seen.workers if worker.state == "ready"}
        if pids and not queue and not is_waiting:
            question = self._questions[stage] = _Question(lambda: self._ask(stage, _QUESTION_SECONDS), pids)
        is_busy = bool(pids) and (queue > 0 or question is None or not wait([question], patience).done)
        if question is not None and question.done() and question.result() is not None:
            self._answered[stage] = question
        known = self._answered.get(stage)
        # A new process may have loaded another model: ignore what its predecessor said.
        description = known.result() if known and known.pids & pids else None
        update = {"queue": queue, "description": description, "busy": is_busy, "unhealthy": self.is_unhealthy(stage)}
        return seen.model_copy(update=update)

    def describe(self, stage: Stage, timeout: float = CONNECT_SECONDS) -> Description | None:
        """A worker's description of itself; None if no worker is ready or none answers in time.

        Where no process beside the server can be asked, the question waits in the stage's queue like any request.
        """
        if (description := self.jobs.description(stage)) is not None:
            return description
        try:
            return self._ask(stage, timeout) if self.manage(stage).ready else None
        except errors.CloudVidError:
            return None

    def check_ready(self, *stages: Stage) -> None:
        """Return if every stage has a ready worker, or if the endpoints answer and workers cannot be counted.

        Raises:
            Unreachable: nothing answers at an endpoint's address.
            Unauthorized: the token is refused.
            NotReady: a stage has no ready worker.
        """
        for stage in stages or tuple(Stage):
            seen = self.look(stage)
            if seen.ready:
                continue  # whatever has happened to another worker
            said = last_error(worker_log(self.key_file), stage)
            if seen.unhealthy:
                said = said or "see the server's log"
                raise errors.Unhealthy(f"{self.urls[stage]}/ping answers 500: workers fail to start: {said}")
            if seen.ping != 200:
                raise errors.Unreachable(f"{self.urls[stage]}/ping answers {seen.ping_text}")
            if seen.counted_by == "nothing":
                continue
            if not seen.workers:
                raise errors.NotReady(no_workers(stage))
            remedy = f"last error in the log: {said}" if said else "`cloudvid wait` waits for one"
            raise errors.NotReady(f"{stage} has 0 of {len(seen.workers)} workers ready; {remedy}")

    def wait_until_ready(
        self,
        *stages: Stage,
        timeout: float = 600.0,
        on_wait: Callable[[errors.ServerUnavailable], None] = lambda error: None,
    ) -> None:
        """Wait until every stage (default: both) has a ready worker; `on_wait` gets the reason when a check fails.

        Raises:
            ServerUnavailable: the last reason after `timeout` seconds; `Untrusted` at once.
        """
        began = self.clock()
        unhealthy_since: float | None = None
        while True:
            try:
                return self.check_ready(*stages)
            except errors.ServerUnavailable as error:
                now = self.clock()
                limit = timeout
                if isinstance(error, errors.Unauthorized):
                    # The key file may not be written yet. A wrong token stays wrong.
                    limit = min(timeout, _KEY_FILE_SECONDS if self.key_file else 0.0)
                is_unhealthy = isinstance(error, errors.Unhealthy)
                unhealthy_since = (unhealthy_since or now) if is_unhealthy else None
                is_given_up = unhealthy_since is not None and now - unhealthy_since >= _UNHEALTHY_SECONDS
                if now - began >= limit or is_given_up or isinstance(error, errors.Untrusted):
                    raise
                on_wait(error)
            self.sleep(_POLL_SECONDS)

    def set_workers(self, stage: Stage, least: int, most: int) -> None:
        """Tell TorchServe how many workers a stage should have; it starts and stops them in its own time.

        It starts workers up to `least` and stops those above `most`, the newest first. A request in progress on a
        stopped worker goes back to the queue.

        Raises:
            ServerUnavailable: the management API cannot be asked, or TorchServe refuses.
        """
        query = {"min_worker": least, "max_worker": most}
        with self.connection.call("PUT", self._model_url(stage), "management", params=query) as response:
            self._check(stage, response.status_code, response.content)

    def _behind_proxy(self, stage: Stage) -> StageStatus:
        """The workers that a proxy's `/ready` counts: those of one host, if there are several behind it."""
        url = f"{self.urls[stage]}/ready"
        unknown = StageStatus(stage=stage, server=self.urls[stage], counted_by="nothing")
        try:
            with self.connection.call("GET", url, "inference", params={"stage": stage}) as response:
                counts = {name: int(count) for name, count in response.json()["stages"][stage]["workers"].items()}
                ready = counts["READY"]
        except (errors.CloudVidError, ValueError, LookupError, TypeError, AttributeError):
            return unknown
        states = ["ready"] * ready + ["loading"] * (sum(counts.values()) - ready)
        workers = tuple(Worker.model_validate({"id": "", "state": state}) for state in states)
        return unknown.model_copy(update={"counted_by": "proxy", "workers": workers})

    def with_restarts(self, seen: StageStatus) -> StageStatus:
        """The same state with the restarts of workers, which the process beside the server knows."""
        address = f"{self._beside(seen.stage)}/ready"
        try:
            with self.connection.call("GET", address, "inference", params={"stage": seen.stage}) as response:
                restarts = response.json()["stages"][seen.stage].get("restarts", {"count": 0, "last": None})
            return seen.model_copy(update={"restarts": restarts["count"], "last_restart": restarts["last"]})
        except (errors.CloudVidError, ValueError, LookupError, TypeError, AttributeError):
            return seen

    def _model_url(self, stage: Stage) -> str:
        return f"{self.management[stage]}/models/{stage}"

    def _check(self, stage: Stage, status: int, content: bytes) -> None:
        if status in (200, 202):
            return
        body = error_body(status, content)
        if status == 404 and body.type == "ModelNotFoundException":
            raise errors.NotReady(f"{self.management[stage]} has no model {stage}", body)
        text = f"{self._model_url(stage)} answers {told(body)}"
        raise errors.Unreachable(text, body)

    def _ask(self, stage: Stage, timeout: float) -> Description | None:
        url = f"{self._model_url(stage)}?customized=true"
        try:
            with self.connection.call("GET", url, "management", timeout=(CONNECT_SECONDS, timeout)) as response:
                return Description.model_validate(response.json()[0]["customizedMetadata"])
        except (errors.CloudVidError, ValueError, LookupError, TypeError):
            return None

    def _beside(self, stage: Stage) -> str:
        """Where the process beside a stage's server is asked: at its own port on this machine, else via the proxy."""
        url = self.urls[stage]
        return next_port(url, EXPORTER) if self._runs_here(next_port(url)) else url

    def _runs_here(self, management: str) -> bool:
        """Whether a management API is one of this machine, and the workers' process ids are valid here.

        The end of a tunnel is local too, and a container has process ids of its own: the server's folder has to say so.
        """
        here = server_in(self.key_file.parent) if self.key_file and is_local(management) else None
        return here is not None and here.is_alive and urlsplit(management).port == here.port + MANAGEMENT


def _observed(worker: Worker) -> Worker:
    """A worker on this machine as it really is: TorchServe notices deaths late, and then measures no memory."""
    if worker.pid is None:
        return worker
    size = resident_bytes(worker.pid)
    return worker.model_copy(update={"state": "dead", "memory": None} if size is None else {"memory": size})


class _Question(Future[Description | None]):
    """`?customized=true`, asked once in a thread of its own, however long the answer takes."""

    def __init__(self, ask: Callable[[], Description | None], pids: set[int | None]) -> None:
        super().__init__()
        self.pids = pids
        threading.Thread(target=lambda: self.set_result(ask()), name="question", daemon=True).start()
