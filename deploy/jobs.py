"""The exporter's part about jobs: which requests wait or run, how one is cancelled, and how fast they go. It takes the
inference key.

`GET /jobs?stage=t2i`     lists them
`PUT /jobs/ID?stage=t2i`  announces one that is about to be sent, so that it is listed while it waits
`DELETE /jobs/ID`         cancels it, whether it waits, runs or is yet to come; `DELETE /jobs?prefix=P` those whose ids
                          begin so
`GET /description?stage=t2i`  what the stage's workers say of themselves, however busy they are
"""

import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloudvid_schema.protocol import JOB_ID, JOB_ID_RULE, JobStatus, Stage
from cloudvid_serving import descriptions
from cloudvid_serving.job_files import JobFiles

_SENDING_SECONDS = 60.0
_PATH = re.compile(f"/jobs(?:/({JOB_ID}))?")


class JobError(Exception):
    """A request that is refused: status, TorchServe's name for the kind, and a text."""


class Jobs:
    """Answers from the files that the workers write.

    Args:
        stages: of this server.
        key: for inference; empty before TorchServe has written it.
        state: a stage's workers and queue, as `/ready` tells them; None if they are not known.
    """

    def __init__(self, stages: Sequence[str], key: str, state: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._stages, self._key, self._state, self._files = stages, key, state, JobFiles()

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], authorization: str) -> tuple[int, Any]:
        """Status and JSON body.

        Raises:
            JobError: the request is refused.
        """
        found = _PATH.fullmatch(path)
        if not found and path != "/description":
            raise JobError(404, "ResourceNotFoundException", f"there are /jobs and /jobs/ID; ID has {JOB_ID_RULE}")
        if not self._key or not hmac.compare_digest(authorization.encode(), f"Bearer {self._key}".encode()):
            raise JobError(401, "InvalidToken", "Authorization: must be Bearer and the inference key")
        stages = query.get("stage", [])
        if not found:
            return 200, self._description(method, stages)
        job = found[1]
        match method, bool(job):
            case "GET", False:
                return 200, _document(self._listed(stages or self._stages))
            case "DELETE", False:
                return 202, _document(self._cancel_all(query.get("prefix", [""])[0]))
            case "DELETE", True:
                status = self._files.cancel(job)
                return 202, _document([status] if status else [])
            case "PUT", True if len(stages) == 1:
                self._files.announce(job, Stage(stages[0]))
                return 201, _document([])
            case "PUT", True:
                raise JobError(422, "InvalidParameters", f"stage: must be one of {', '.join(self._stages)}")
        methods = "PUT or DELETE" if job else "GET or DELETE"
        raise JobError(405, "MethodNotAllowed", f"the method must be {methods}")

    def _description(self, method: str, stages: Sequence[str]) -> dict[str, Any]:
        if method != "GET":
            raise JobError(405, "MethodNotAllowed", "the method must be GET")
        if len(stages) != 1:
            raise JobError(422, "InvalidParameters", f"stage: must be one of {', '.join(self._stages)}")
        state = self._state(stages[0])
        told = descriptions.get(Stage(stages[0])) if state and state["workers"]["READY"] else None
        if told is None:  # what an earlier server has left does not count
            raise JobError(503, "ServiceUnavailableException", f"{stages[0]} has no worker that is ready")
        return told.model_dump(mode="json")

    def _cancel_all(self, prefix: str) -> list[JobStatus]:
        if not re.fullmatch(JOB_ID, prefix):
            raise JobError(422, "InvalidParameters", "prefix: must be the beginning of a job's id")
        found = [status for status in self._files.all() if status.id.startswith(prefix)]
        for status in found:
            self._files.cancel(status.id)
        return found

    def _listed(self, stages: Sequence[str]) -> list[JobStatus]:
        """The jobs of some stages. Of those that were announced a while ago only as many as the queue has: the others
        never arrived.
        """
        found = self._files.all()
        listed = []
        for stage in stages:
            mine = [status for status in found if status.stage == stage]
            late = [status for status in mine if status.state == "queued" and self._is_late(status)]
            state = self._state(stage)
            lost = late[: max(0, len(late) - state["pending_requests"])] if state else []
            for status in lost:
                self._files.forget(status.id)
            listed += [status for status in mine if status not in lost]
        return sorted(listed, key=lambda status: status.since)

    @staticmethod
    def _is_late(status: JobStatus) -> bool:
        return status.since < time.time() - _SENDING_SECONDS


def _document(jobs: Sequence[JobStatus]) -> dict[str, Any]:
    return {"jobs": [job.model_dump(exclude_none=True) for job in jobs]}
