"""The jobs of the servers behind both endpoints: announced before they are sent, listed, cancelled; and their workers.

The process beside each TorchServe keeps them (`deploy/jobs.py`): on this machine it is asked at its own port, elsewhere
through the proxy. A server that has neither carries out requests as it always did.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import error_body, plain
from cloudvid.endpoints.connection import Connection
from cloudvid_schema.protocol import Description, JobStatus, Stage

_PATIENCE_SECONDS = 3.0  # a courtesy is worth no longer wait


_Kind = TypeVar("_Kind", bound=BaseModel)


class _Answer(BaseModel):
    jobs: list[JobStatus]


class Jobs:
    """What waits and runs.

    Args:
        connection: sends the requests.
        address: where a stage's jobs are asked for.
    """

    def __init__(self, connection: Connection, address: Callable[[Stage], str]) -> None:
        self._connection, self._address = connection, address
        self._without: set[Stage] = set()
        """Stages whose server does not know jobs."""

    def listed(self, *stages: Stage) -> list[JobStatus]:
        """The jobs of some stages, by default of both, oldest first.

        Raises:
            ServerUnavailable: a server cannot be asked, or does not know jobs.
        """
        found = {job.id: job for job in self._of_any("GET", "", stages)}
        return sorted(found.values(), key=lambda job: job.since)

    def cancel(self, job: str, *stages: Stage) -> list[JobStatus]:
        """Cancel a job, whether it waits, runs, or is yet to arrive. Returns what is known of it.

        Raises:
            ServerUnavailable: a server cannot be asked, or does not know jobs.
        """
        return list({found.id: found for found in self._of_any("DELETE", f"/{job}", stages)}.values())

    def announce(self, job: str, stage: Stage) -> None:
        """Announce a job that is about to be sent, where that is possible."""
        if stage not in self._without:
            with suppress(errors.CloudVidError):  # the request itself will tell what is wrong
                self._call("PUT", stage, f"/{job}")

    def cancel_these(self, jobs: Iterable[tuple[str, Stage]]) -> bool:
        """Cancel jobs whose results are no longer wanted, where that is possible. Returns whether it was for all."""
        silent: set[Stage] = set()
        for job, stage in jobs:
            if stage not in silent:
                try:
                    self.cancel(job, stage)
                except errors.CloudVidError:
                    silent.add(stage)  # its other requests would fail the same way
        return not silent

    def cancel_before(self, prefix: str) -> list[JobStatus]:
        """Cancel what an earlier run has left behind, where that is possible. Returns what was cancelled."""
        found: dict[str, JobStatus] = {}
        for stage in Stage:
            with suppress(errors.CloudVidError):
                found |= {job.id: job for job in self._call("DELETE", stage, "", prefix=prefix)}
        return list(found.values())

    def description(self, stage: Stage) -> Description | None:
        """What the stage's workers say of themselves, however busy they are; None where the server does not tell."""
        if stage not in self._without:
            with suppress(errors.CloudVidError):
                return self._ask("GET", stage, "/description", Description)
        return None

    def _of_any(self, method: str, path: str, stages: Sequence[Stage]) -> list[JobStatus]:
        """The answers of those servers that know jobs.

        Raises:
            ServerUnavailable: none does.
        """
        found: list[JobStatus] = []
        failed: list[errors.ServerUnavailable] = []
        asked = stages or tuple(Stage)
        for stage in asked:
            try:
                found += self._call(method, stage, path)
            except errors.ServerUnavailable as error:
                failed.append(error)
        if len(failed) == len(asked):
            raise failed[0]
        return found

    def _call(self, method: str, stage: Stage, path: str, **query: str) -> list[JobStatus]:
        return self._ask(method, stage, f"/jobs{path}", _Answer, **query).jobs

    def _ask(self, method: str, stage: Stage, path: str, kind: type[_Kind], **query: str) -> _Kind:
        url, query = f"{self._address(stage)}{path}", {"stage": stage, **query}
        with self._connection.call(method, url, "inference", params=query, timeout=_PATIENCE_SECONDS) as response:
            status, content = response.status_code, response.content
        if status in (404, 405):
            self._without.add(stage)
        with suppress(ValidationError):
            if status < 300:
                return kind.model_validate_json(content)
            body = error_body(status, content)
            raise errors.Unreachable(f"{url} answers {status} {plain(body.type)}: {plain(body.message)}", body)
        self._without.add(stage)
        raise errors.Unreachable(f"{url} is not CloudVid's")
