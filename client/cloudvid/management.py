"""TorchServe's management API, as an operator needs it: what each stage's workers do, asked and changed.

Two things about it decide how it is asked (both measured, TorchServe 0.12):

- `?customized=true` waits in the stage's queue behind the jobs, and stays there when the asker has gone. So it is asked
  only where a worker is READY and nobody waits, once at a time; what was heard last stands until the next answer.
- `synchronous=true` holds one of the server's few network threads until the workers are loaded, and with it every
  connection that this thread has, of the endpoints too. So nothing here uses it: what a change does is looked at again.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cloudvid import errors
from cloudvid.answers import error_body, plain
from cloudvid.connection import Connection, is_local
from cloudvid.local_server import resident_bytes, server_process
from cloudvid.stage_status import StageStatus, Worker, read_status
from cloudvid_schema.protocol import Description, Stage

CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 1.0
_QUESTION_SECONDS = 3600.0


@dataclass(frozen=True)
class Readiness:
    """Workers of one stage."""

    stage: Stage
    ready: int
    workers: int


class Management:
    """Asks and changes the stages of a server.

    Args:
        connection: how requests are sent.
        addresses: of each stage's management API.
        resident: bytes that a process of this machine holds, None where it has no such process.
    """

    def __init__(
        self,
        connection: Connection,
        addresses: Mapping[Stage, str],
        resident: Callable[[int], int | None] = resident_bytes,
    ) -> None:
        self._connection, self._addresses, self._resident = connection, addresses, resident
        self._questions: dict[Stage, _Question] = {}
        self._known: dict[Stage, _Question] = {}

    def look(self, stage: Stage) -> StageStatus:
        """A stage's workers and its queue, at once whatever the stage does.

        Raises:
            Unreachable: nothing, or no TorchServe, answers at the address.
            Unauthorized: the key is refused, or there is none.
            NotReady: the server does not have the stage's model.
        """
        response = self._connection.call("GET", self._url(stage), "management", timeout=CONNECT_SECONDS)
        with response:
            self._check(stage, response.status_code, response.content)
            try:
                seen = read_status(stage, self._addresses[stage], response.json()[0])
            except (ValueError, LookupError, TypeError):
                raise errors.Unreachable(f"{self._url(stage)} is no management API of TorchServe's") from None
        if not self._is_here(seen.server):
            return seen
        sizes = {worker.pid: self._resident(worker.pid) for worker in seen.workers if worker.pid}
        return seen.model_copy(update={"workers": tuple(_in_person(worker, sizes) for worker in seen.workers)})

    def status(self, stage: Stage, patience: float = _PATIENCE_SECONDS) -> StageStatus:
        """A stage's workers and queue, and what a worker says of itself where one is free to say it.

        Args:
            stage: which.
            patience: seconds to wait for a worker that is busy after all.

        Raises:
            ServerUnavailable: as `look` does.
        """
        question = self._questions.get(stage)
        was_waiting = question is not None and not question.is_over
        seen = self.look(stage)
        # A question that no worker has taken yet is ours, not a request of anybody's.
        is_waiting = was_waiting and question is not None and not question.is_over
        queue = max(0, seen.queue - is_waiting)
        pids = {worker.pid for worker in seen.workers if worker.state == "ready"}
        if pids and not queue and not is_waiting:
            question = self._questions[stage] = _Question(lambda: self._ask(stage, _QUESTION_SECONDS), pids)
        is_busy = bool(pids) and (queue > 0 or question is None or not question.wait(patience))
        if question is not None and question.answer is not None:
            self._known[stage] = question
        known = self._known.get(stage)
        # Another process may have loaded another model: what its predecessor said is no longer so.
        description = known.answer if known and known.pids & pids else None
        return seen.model_copy(update={"queue": queue, "description": description, "busy": is_busy})

    def readiness(self, stage: Stage) -> Readiness | None:
        """Workers of a stage, or None where the management API cannot be asked: it is out of reach, or there is no key.

        Raises:
            NotReady: the server does not have the stage's model.
        """
        try:
            seen = self.look(stage)
        except (errors.Unreachable, errors.Unauthorized, errors.Stalled):
            return None
        return Readiness(stage, seen.ready, len(seen.workers))

    def describe(
        self, stage: Stage, timeout: float = CONNECT_SECONDS, readiness: Readiness | None = None
    ) -> Description | None:
        """What a worker of a stage says of itself, or None where it cannot be asked or is busy for too long.

        The question waits in the stage's queue like any request, here for at most `timeout` seconds.

        Args:
            stage: which.
            timeout: seconds.
            readiness: as just seen; default: looked at first, for without a worker that is ready it would wait for one.
        """
        try:
            readiness = readiness or self.readiness(stage)
        except errors.CloudVidError:
            return None
        return self._ask(stage, timeout) if readiness and readiness.ready else None

    def set_workers(self, stage: Stage, least: int, most: int) -> None:
        """Tell TorchServe how many workers a stage has from now on; it starts and ends them in its own time.

        It starts workers up to `least`, and ends those above `most`, the newest first. A request that an ended worker
        had in hand goes back to the queue.

        Raises:
            ServerUnavailable: as `look` does, or TorchServe refuses.
        """
        query = {"min_worker": least, "max_worker": most}
        response = self._connection.call("PUT", self._url(stage), "management", params=query, timeout=CONNECT_SECONDS)
        with response:
            self._check(stage, response.status_code, response.content)

    def _url(self, stage: Stage) -> str:
        return f"{self._addresses[stage]}/models/{stage}"

    def _check(self, stage: Stage, status: int, content: bytes) -> None:
        if status in (200, 202):
            return
        body = error_body(status, content)
        if status == 404:
            raise errors.NotReady(f"{self._addresses[stage]} has no model {stage}", body)
        said = f"{plain(body.type)}: {plain(body.message)}"
        raise errors.Unreachable(f"{self._url(stage)} answers {status} {said}", body)

    def _ask(self, stage: Stage, timeout: float) -> Description | None:
        url = f"{self._url(stage)}?customized=true"
        try:
            with self._connection.call("GET", url, "management", timeout=(CONNECT_SECONDS, timeout)) as response:
                return Description.model_validate(response.json()[0]["customizedMetadata"])
        except (errors.CloudVidError, ValueError, LookupError, TypeError):
            return None

    def _is_here(self, address: str) -> bool:
        """Whether the workers' process ids are this machine's; in a container they have numbers of their own."""
        if not is_local(address):  # a tunnel's end is local too: the server's own folder has to say so
            return False
        key_file = self._connection.credentials.key_file
        server = server_process(key_file.parent) if key_file else None
        return server is not None and urlsplit(address).port == server[1] + 1


def _in_person(worker: Worker, sizes: Mapping[int, int | None]) -> Worker:
    """A worker of this machine as it is: TorchServe learns late of a death, and after one measures memory no more."""
    if worker.pid is None:
        return worker
    size = sizes[worker.pid]
    return worker.model_copy(update={"state": "dead", "memory": None} if size is None else {"memory": size})


class _Question:
    """`?customized=true`, asked once, in a thread of its own for as long as the answer takes."""

    def __init__(self, ask: Callable[[], Description | None], pids: set[int | None]) -> None:
        self.pids = pids
        self.answer: Description | None = None
        self._is_over = threading.Event()
        threading.Thread(target=self._run, args=(ask,), name="question", daemon=True).start()

    def _run(self, ask: Callable[[], Description | None]) -> None:
        self.answer = ask()
        self._is_over.set()

    @property
    def is_over(self) -> bool:
        """Whether it was answered, or cannot be."""
        return self._is_over.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it is over within so many seconds."""
        return self._is_over.wait(seconds)
