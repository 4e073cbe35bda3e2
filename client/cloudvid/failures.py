"""What to do about each failure, as one table: TorchServe's answers as they were measured, and what a network adds.

A POST is safe to send again because its seed is fixed.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cloudvid import errors
from cloudvid_schema.protocol import ErrorBody

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_LONG_SECONDS = 30.0  # an attempt that lasted longer was in the server's hands, not in front of a closed door
_RESTARTS = 5  # of the server, each in the middle of an answer to the same request
_DRAW = random.SystemRandom()


@dataclass(frozen=True)
class Row:
    """One kind of failure. `None` matches anything."""

    status: int | None
    kind: str | None
    """TorchServe's `type`."""
    message: str | None
    """A part of the message."""
    error: type[errors.StageError] | type[errors.ServerUnavailable]
    tries: int | None
    """How often a request is sent again after failures of this row; None: as long as patience lasts."""

    def matches(self, body: ErrorBody) -> bool:
        """Whether this row is about that answer."""
        return (
            self.status in (None, body.code)
            and self.kind in (None, body.type)
            and (self.message is None or self.message in body.message)
        )


ANSWERS = (
    # The code of a worker's death is a race between 500 and 507; its message is not.
    Row(None, None, "Worker died", errors.WorkerDied, 1),
    # The key file was read again already; a server that starts writes its own about when it listens.
    Row(400, "InvalidKeyException", None, errors.Unauthorized, 3),
    Row(401, None, None, errors.Unauthorized, 0),
    Row(404, "ModelNotFoundException", None, errors.NotReady, 4),  # a server that starts registers its models late
    Row(408, None, None, errors.BrokenAnswer, 1),
    Row(429, None, None, errors.Busy, None),
    Row(503, "ServiceUnavailableException", None, errors.Busy, None),
    Row(503, "InternalServerException", None, errors.StageFailed, 1),
    Row(507, None, None, errors.OutOfMemory, 2),
    Row(503, "ServerUnavailable", None, errors.Unreachable, None),  # our proxy's, before a server that is down
    Row(502, None, None, errors.Unreachable, None),
    Row(503, None, None, errors.Busy, None),  # a proxy's
    Row(504, None, None, errors.BrokenAnswer, 1),
    Row(500, None, None, errors.StageFailed, 1),
    Row(None, None, None, errors.Rejected, 0),
)
"""First match wins."""

WITHOUT_ANSWER = (
    Row(None, None, None, errors.Untrusted, 0),
    Row(None, None, None, errors.Unreachable, None),
    Row(None, None, None, errors.Stalled, 1),
    Row(None, None, None, errors.BrokenAnswer, 2),
    Row(None, None, None, errors.WorkerDied, 1),  # a stream that broke while a worker was down
)
"""By class of the error; first match wins."""


def row_of(body: ErrorBody) -> Row:
    """The row of an answer that is an error."""
    return next(row for row in ANSWERS if row.matches(body))


def tries_of(error: errors.CloudVidError | None) -> int | None:
    """How often a request is sent again after this error; None: as long as patience lasts."""
    body = getattr(error, "body", None)
    if body is not None:
        return row_of(body).tries
    return next((row.tries for row in WITHOUT_ANSWER if isinstance(error, row.error)), 0)


DOWN_SECONDS = 60.0
"""How long a stage may be without a worker while its server complains, before it counts as given up: TorchServe loads a
large model in less, and gives a worker up after 300."""


class Tries:
    """Decides after each failure of one request whether it is sent again.

    Args:
        retries: how often in all, whatever the failures; waiting for a busy or absent server is not counted.
        patience: seconds to wait for such a server.
        clock: monotonic seconds.
    """

    def __init__(self, retries: int, patience: float, clock: Callable[[], float]) -> None:
        self._retries, self._patience, self._clock = retries, patience, clock
        self._counts: Counter[type[errors.CloudVidError]] = Counter()
        self._restarts = 0
        self._last: errors.CloudVidError | None = None
        self._began = self._waiting_since = clock()

    def begin(self) -> None:
        """The request is sent (again)."""
        self._began = self._clock()

    def allow(self, error: errors.CloudVidError) -> bool:
        """Whether the request is to be sent again after this failure."""
        last, self._last = self._last, error
        tries = tries_of(error)
        if tries is None:
            if isinstance(error, errors.ServerUnavailable) and isinstance(
                last, errors.BrokenAnswer | errors.WorkerDied
            ):
                # The server went away, and that is what broke the answer: no fault of this request, but no free pass.
                self._counts[type(last)] -= 1
                self._restarts += 1
            now = self._clock()
            if tries_of(last) is not None or now - self._began > _LONG_SECONDS:
                self._waiting_since = now  # until now it was worked on, or queued
            return self._restarts <= _RESTARTS and now - self._waiting_since < self._patience
        self._counts[type(error)] += 1
        return self._counts[type(error)] <= tries and self._counts.total() <= self._retries


def backoff(attempt: int) -> float:
    """Seconds to wait before the next try: full jitter up to a bound that doubles from 0.5 to 30 s.

    (Exponential back-off with full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    """
    return _DRAW.uniform(0.0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 10)))
