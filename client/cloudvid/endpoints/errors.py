"""Everything that cloudvid raises, by what the caller does next.

CloudVidError
├── InvalidInput            fix the input; nothing was sent
│   ├── InvalidSceneFile
│   └── InvalidRequest
├── ServerUnavailable       start the server, wait for it or log in
│   ├── Unreachable
│   │   └── Untrusted           no trusted certificate, or no TLS
│   ├── NotReady
│   │   ├── Unhealthy           its workers fail to start
│   │   └── NotScaled           the requested workers fail to start
│   └── Unauthorized
├── StageError              one request failed; others may succeed
│   ├── Cancelled           somebody asked for its end
│   ├── Rejected            the request itself is refused
│   ├── Busy                the queue is full
│   ├── OutOfMemory
│   ├── StageFailed         the handler failed
│   ├── WorkerDied
│   ├── PictureChanged      a clip's picture is no longer the one on record
│   └── BrokenAnswer        cut off, or not what its digest says
│       └── Stalled         no data for too long
└── OutputError             a file cannot be read or written
    ├── UnusableFolder      nothing can be written there; nothing was sent
    ├── NoRoom              the next file might not fit; its request was not sent
    └── FolderInUse         another cloudvid process writes there
"""

from collections.abc import Sequence
from typing import Any

from cloudvid_schema.faults import Fault, lines
from cloudvid_schema.protocol import ErrorBody


class CloudVidError(Exception):
    """Base class of this library's errors. The text is meant for people."""


class InvalidInput(CloudVidError):
    """An input breaks its rules; nothing was sent.

    Attributes:
        faults: every fault that was found, each with its place.
    """

    def __init__(self, faults: Sequence[Fault], what: str = "") -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{what}: {line}" if what else line for line in lines(faults)))


class InvalidSceneFile(InvalidInput):
    """A scene file cannot be read or has faults."""


class InvalidRequest(InvalidInput):
    """Parameters of a single request break their rules."""


class _Answered(CloudVidError):
    def __init__(self, message: str, body: ErrorBody | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.body, self.log = body, tuple(log)


class ServerUnavailable(_Answered):
    """The server cannot take requests in its current state.

    Attributes:
        body: the server's answer, if there was one.
        log: the last lines of the server's log, if it runs on this machine and has died.
    """


class Unreachable(ServerUnavailable):
    """Nothing answers at the address."""


class Untrusted(Unreachable):
    """The server's certificate is not trusted, or the server does not speak TLS."""


class NotReady(ServerUnavailable):
    """The server answers, but a stage has no worker that is ready."""


class Unhealthy(NotReady):
    """The server reports that workers of a model fail to start."""


class NotScaled(NotReady):
    """A stage did not get the requested number of workers.

    Attributes:
        status: the stage's `StageStatus` after the attempt.
    """

    def __init__(self, message: str, status: Any) -> None:
        super().__init__(message)
        self.status = status


class Unauthorized(ServerUnavailable):
    """The token is missing, wrong or expired."""


class StageError(_Answered):
    """A request failed.

    Attributes:
        body: the server's answer, if there was one.
    """


class Cancelled(StageError):
    """The request was cancelled while it waited or ran."""


class Rejected(StageError):
    """The request itself is refused (400, 404, 413, 415, 422); sending it again would not help."""


class Busy(StageError):
    """The stage's queue is full, or the stage has no worker."""


class OutOfMemory(StageError):
    """The request does not fit into the device's memory."""


class StageFailed(StageError):
    """The handler failed; the worker is still running."""


class WorkerDied(StageError):
    """The worker died while it ran the request: it crashed, was killed, or was replaced after a timeout."""


class PictureChanged(StageError):
    """The picture of a clip has changed on the disk since it was made."""


class BrokenAnswer(StageError):
    """The answer was cut off, or is not what its digest says."""


class Stalled(BrokenAnswer):
    """No data arrived for as long as the client waits."""


class OutputError(CloudVidError):
    """A file cannot be read or written.

    Attributes:
        errno: the operating system's error number, if known.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class UnusableFolder(OutputError):
    """The output folder is not a folder or cannot be written to; nothing was sent."""


class NoRoom(OutputError):
    """The next file might not fit on the disk; its request was not sent."""


class FolderInUse(OutputError):
    """Another cloudvid process writes to this folder."""
