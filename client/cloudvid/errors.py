"""Everything that cloudvid raises, split by what the caller does next.

CloudVidError
├── InvalidInput            mend the input; nothing was sent
│   ├── InvalidSceneFile
│   └── InvalidRequest
├── ServerUnavailable       start, wait for or log in to the server
│   ├── Unreachable
│   │   └── Untrusted           no certificate that is trusted, or no TLS
│   ├── NotReady
│   │   ├── Unhealthy           its workers do not come up
│   │   └── NotScaled           the workers asked for do not come up
│   └── Unauthorized
├── StageError              one request failed; others may succeed
│   ├── Rejected            the request itself is refused
│   ├── Busy                the queue is full
│   ├── OutOfMemory
│   ├── StageFailed         the handler failed
│   ├── WorkerDied
│   └── BrokenAnswer        cut, or not what its digest says
│       └── Stalled         no sign of life
└── OutputError             a file cannot be read or written
    ├── UnusableFolder      nothing can be written there; nothing was sent
    ├── NoRoom              the next file might not fit; its request was not sent
    └── FolderInUse         another cloudvid writes there
"""

from collections.abc import Sequence

from cloudvid.stage_status import StageStatus
from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import ErrorBody


class CloudVidError(Exception):
    """Base of all errors of this library; its text is for a person."""


class InvalidInput(CloudVidError):
    """An input breaks its rules; nothing was sent.

    Attributes:
        faults: every fault that was found, each with its place.
    """

    def __init__(self, faults: Sequence[Fault], what: str = "") -> None:
        self.faults = tuple(faults)
        lines = [str(fault) for fault in faults]
        super().__init__("\n".join(f"{what}: {line}" if what else line for line in lines))


class InvalidSceneFile(InvalidInput):
    """A scene file cannot be read or has faults."""


class InvalidRequest(InvalidInput):
    """Parameters of a single request break their rules."""


class _Answered(CloudVidError):
    def __init__(self, message: str, body: ErrorBody | None = None) -> None:
        super().__init__(message)
        self.body = body


class ServerUnavailable(_Answered):
    """The server cannot take requests as things are.

    Attributes:
        body: what the server said, where it said something.
    """


class Unreachable(ServerUnavailable):
    """Nothing answers at the address."""


class Untrusted(Unreachable):
    """The server's certificate is not trusted, or it does not speak TLS."""


class NotReady(ServerUnavailable):
    """The server answers, but a stage has no worker that is ready."""


class Unhealthy(NotReady):
    """The server says itself that workers of a model do not come up."""


class NotScaled(NotReady):
    """A stage does not get the workers that it was told to have.

    Attributes:
        status: the stage as it was left.
    """

    def __init__(self, message: str, status: StageStatus) -> None:
        super().__init__(message)
        self.status = status


class Unauthorized(ServerUnavailable):
    """The token is missing, wrong or expired."""


class StageError(_Answered):
    """A request failed.

    Attributes:
        body: what the server said, where it said something.
    """


class Rejected(StageError):
    """The request is refused for what it is (400, 404, 413, 415, 422): sent again, it will be refused again."""


class Busy(StageError):
    """The stage's queue is full, or it has no worker."""


class OutOfMemory(StageError):
    """The request does not fit the device's memory."""


class StageFailed(StageError):
    """The handler failed; the worker lives."""


class WorkerDied(StageError):
    """The worker died while it ran the request: crashed, killed, or replaced because it did not answer in time."""


class BrokenAnswer(StageError):
    """The answer was cut, or is not what its digest says."""


class Stalled(BrokenAnswer):
    """No sign of life for as long as the client waits."""


class OutputError(CloudVidError):
    """A file cannot be read or written.

    Attributes:
        errno: the operating system's reason, where it gave one.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class UnusableFolder(OutputError):
    """The output folder is none, or nothing can be written to it; nothing was sent."""


class NoRoom(OutputError):
    """A file that is to be made might not fit on the disk; its request was not sent."""


class FolderInUse(OutputError):
    """Another cloudvid writes to this folder."""
