"""The jobs of one server, as small files in a folder that its workers and its exporter share.

A job's record `{id}.json` exists from its announcement, or else from its start, until its end. `{id}.cancel` asks for
that end: a worker looks for it between two steps, and before it begins a job that was queued.
"""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from cloudvid_schema.files import replace_file
from cloudvid_schema.protocol import JobStatus, Phase, RequestError, Stage

_CANCEL_SECONDS = 24 * 3600.0  # longer than any queue
_WRITE_SECONDS = 1.0


class JobFiles:
    """The folder of a server's jobs; by default below the TMPDIR that its processes share."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / "jobs"

    def announce(self, job: str, stage: Stage) -> None:
        """Note a job that is about to be sent. It may have been cancelled already, and stays so."""
        self.write(JobStatus(id=job, stage=stage, state="queued", since=time.time()))

    def cancel(self, job: str) -> JobStatus | None:
        """Ask for a job's end, even if it is not known yet. Returns what is known of it.

        Raises:
            OSError: that cannot be noted.
        """
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self.cancellation(job).touch()
        return self._read(self._record(job))

    def cancellation(self, job: str) -> Path:
        """The file whose existence cancels a job."""
        return self._folder / f"{job}.cancel"

    def write(self, status: JobStatus) -> None:
        """Put a job's state on record, if that is possible: a full disk is no reason to fail the job."""
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True, mode=0o700)
            replace_file(self._record(status.id), status.model_dump_json().encode())

    def remove(self, job: str) -> None:
        """Forget a job that has ended."""
        self.forget(job)
        with suppress(OSError):
            self.cancellation(job).unlink(missing_ok=True)

    def forget(self, job: str) -> None:
        """Forget an announcement; where the job was cancelled, it stays so if it arrives after all."""
        with suppress(OSError):
            self._record(job).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget an earlier server's."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def worker_of(self, job: str) -> int | None:
        """Process id of the worker that carries a job out, if one does."""
        status = self._read(self._record(job))
        return status.worker if status else None

    def all(self) -> list[JobStatus]:
        """All jobs, oldest first. Records of workers that have died, and old cancellations, are removed."""
        oldest = time.time() - _CANCEL_SECONDS
        for path in self._folder.glob("*.cancel"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
        found = []
        for path in self._folder.glob("*.json"):
            status = self._read(path)
            if status and status.worker and not psutil.pid_exists(status.worker):
                path.unlink(missing_ok=True)
            elif status:
                found.append(status)
        return sorted(found, key=lambda status: status.since)

    def _record(self, job: str) -> Path:
        return self._folder / f"{job}.json"

    def _read(self, path: Path) -> JobStatus | None:
        with suppress(FileNotFoundError, ValidationError):
            return JobStatus.model_validate_json(path.read_bytes())
        return None


class RunningJob:
    """A job that a worker carries out.

    Args:
        files: where it is on record.
        job: its id.
        stage: the worker's.

    Raises:
        RequestError: 409; it was cancelled while it waited.
    """

    def __init__(self, files: JobFiles, job: str, stage: Stage) -> None:
        self._files = files
        self._cancellation = os.fspath(files.cancellation(job))  # looked for in every step
        self._written = time.monotonic()
        self._status = JobStatus(id=job, stage=stage, state="running", since=time.time(), worker=os.getpid())
        if self.is_cancelled():
            files.remove(job)
            raise RequestError.cancelled()
        files.write(self._status)

    def is_cancelled(self) -> bool:
        """Whether somebody has asked for its end; this takes microseconds."""
        return os.path.exists(self._cancellation)  # noqa: PTH110  # pathlib takes three times as long

    def on_step(self, phase: Phase, step: int, steps: int) -> None:
        """Put the step on record, at most once a second."""
        if (now := time.monotonic()) - self._written >= _WRITE_SECONDS:
            self._written = now
            self._files.write(self._status.model_copy(update={"phase": phase, "step": step, "steps": steps}))

    def end(self) -> None:
        """The job has ended, however it did. What was announced since, to be sent again, is another's."""
        if self._files.worker_of(self._status.id) == os.getpid():
            self._files.remove(self._status.id)
