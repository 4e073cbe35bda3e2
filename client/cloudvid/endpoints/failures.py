"""What to do about each failure, as one table: TorchServe's answers (as measured) and those of networks.

Sending a POST again is safe because its seed is fixed.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cloudvid.endpoints import errors
from cloudvid_schema.protocol import ErrorBody

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_LONG_SECONDS = 30.0  # a longer attempt was accepted by the server before it failed
_RESTARTS = 5  # of the server during one request
_DRAW = random.SystemRandom()


@dataclass(frozen=True)
class Row:
    """A kind of failure; `None` matches anything."""

    status: int | None
    kind: str | None
    """TorchServe's `type`."""
    message: str | None
    """A part of the message."""
    error: type[errors.StageError] | type[errors.ServerUnavailable]
    tries: int | None
    """How often a request is sent again after such a failure; None: as long as the patience lasts."""


ANSWERS = (
    # When a worker dies, the code is 500 or 507, depending on a race; the message is always the same.
    Row(None, None, "Worker died", errors.WorkerDied, 1),
    # The key file has already been read again; a starting server writes its keys about when it starts to listen.
    Row(400, "InvalidKeyException", None, errors.Unauthorized, 3),
    Row(401, None, None, errors.Unauthorized, 0),
    Row(404, "ModelNotFoundException", None, errors.NotReady, 4),  # a starting server registers its models late
    Row(408, None, None, errors.BrokenAnswer, 1),
    Row(409, "Cancelled", None, errors.Cancelled, 0),
    Row(429, None, None, errors.Busy, None),
    Row(503, "ServiceUnavailableException", None, errors.Busy, None),
    Row(503, "InternalServerException", None, errors.StageFailed, 1),
    # TorchServe itself has no memory for one more body: it is full, like a queue. (A stage's own is `OutOfMemory`.)
    Row(507, "OutOfMemoryError", None, errors.Busy, None),
    Row(507, "OutOfDirectMemoryError", None, errors.Busy, None),
    Row(507, None, None, errors.OutOfMemory, 2),
    Row(503, "ServerUnavailable", None, errors.Unreachable, None),  # from our proxy when the server is down
    Row(502, None, None, errors.Unreachable, None),
    Row(503, None, None, errors.Busy, None),  # from another proxy
    Row(504, None, None, errors.BrokenAnswer, 1),
    Row(500, None, None, errors.StageFailed, 1),
    Row(None, None, None, errors.Rejected, 0),
)
"""The first match wins."""

WITHOUT_ANSWER = (
    Row(None, None, None, errors.Untrusted, 0),
    Row(None, None, None, errors.PictureChanged, 0),  # the picture is made again first
    Row(None, None, None, errors.Unreachable, None),
    Row(None, None, None, errors.Stalled, 1),
    Row(None, None, None, errors.BrokenAnswer, 2),
    Row(None, None, None, errors.WorkerDied, 1),  # a stream broke off while a worker was down
)
"""By class of the error; the first match wins."""


def row_of(body: ErrorBody) -> Row:
    """The row that describes an error body."""
    return next(
        row
        for row in ANSWERS
        if row.status in (None, body.code) and row.kind in (None, body.type) and (row.message or "") in body.message
    )


def tries_of(error: errors.CloudVidError | None) -> int | None:
    """How often a request is sent again after this error; None: as long as the patience lasts."""
    body = getattr(error, "body", None)
    if body is not None:
        return row_of(body).tries
    return next((row.tries for row in WITHOUT_ANSWER if isinstance(error, row.error)), 0)


DOWN_SECONDS = 60.0
"""How long a stage may have no worker while its server reports failure before the batch gives it up. TorchServe loads a
large model in less, and gives up a worker after 300 s."""


class Tries:
    """Decides after each failure of a request whether to send it again.

    Args:
        retries: how often in total; waiting for a busy or absent server does not count.
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
        """Note that the request is being sent (again)."""
        self._began = self._clock()

    def allow(self, error: errors.CloudVidError) -> bool:
        """Whether to send the request again after this failure."""
        last, self._last = self._last, error
        tries = tries_of(error)
        if tries is None:
            if isinstance(error, errors.ServerUnavailable) and isinstance(
                last, errors.BrokenAnswer | errors.WorkerDied
            ):
                # The server went away and broke the answer: not this request's fault, but counted.
                self._counts[type(last)] -= 1
                self._restarts += 1
            now = self._clock()
            if tries_of(last) is not None or now - self._began > _LONG_SECONDS:
                self._waiting_since = now  # until now it was queued or in progress
            return self._restarts <= _RESTARTS and now - self._waiting_since < self._patience
        self._counts[type(error)] += 1
        return self._counts[type(error)] <= tries and self._counts.total() <= self._retries


def backoff(attempt: int) -> float:
    """Seconds to wait before the next attempt: full jitter up to a bound that doubles from 0.5 to 30 s.

    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    """
    return _DRAW.uniform(0.0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 10)))
