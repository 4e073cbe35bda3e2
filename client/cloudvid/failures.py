"""What to do about each failure, as one table: TorchServe's answers as they were measured, and what a network adds.

A POST is safe to send again because its seed is fixed.
"""

import random
from dataclasses import dataclass

from cloudvid import errors
from cloudvid_schema.protocol import ErrorBody

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
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
    Row(400, "InvalidKeyException", None, errors.Unauthorized, 2),
    Row(401, None, None, errors.Unauthorized, 2),
    Row(403, None, None, errors.Unauthorized, 2),
    Row(404, "ModelNotFoundException", None, errors.NotReady, None),  # a server that starts registers its models late
    Row(408, None, None, errors.BrokenAnswer, 3),
    Row(429, None, None, errors.Busy, None),
    Row(503, "ServiceUnavailableException", None, errors.Busy, None),
    Row(503, "InternalServerException", None, errors.StageFailed, 1),
    Row(507, None, None, errors.OutOfMemory, 2),
    Row(502, None, None, errors.Unreachable, None),
    Row(503, None, None, errors.Busy, None),  # a proxy's
    Row(504, None, None, errors.BrokenAnswer, 1),
    Row(500, None, None, errors.StageFailed, 1),
    Row(None, None, None, errors.Rejected, 0),
)
"""First match wins."""

WITHOUT_ANSWER = (
    Row(None, None, None, errors.Unreachable, None),
    Row(None, None, None, errors.Stalled, 1),
    Row(None, None, None, errors.BrokenAnswer, 2),
)
"""By class of the error; first match wins."""


def row_of(body: ErrorBody) -> Row:
    """The row of an answer that is an error."""
    return next(row for row in ANSWERS if row.matches(body))


def tries_of(error: errors.CloudVidError) -> int | None:
    """How often a request is sent again after this error; None: as long as patience lasts."""
    body = getattr(error, "body", None)
    if body is not None:
        return row_of(body).tries
    return next((row.tries for row in WITHOUT_ANSWER if isinstance(error, row.error)), 0)


def backoff(attempt: int) -> float:
    """Seconds to wait before the next try: full jitter up to a bound that doubles from 0.5 to 30 s.

    (Exponential back-off with full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    """
    return _DRAW.uniform(0.0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 10)))
