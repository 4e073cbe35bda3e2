"""Rounds of a case side by side."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soak.case import Round

Work = Callable[["Round"], None]
"""What does a round."""


def every(number: int) -> bool:
    """Whether a lane takes a round: it takes all."""
    return True


@dataclass(frozen=True)
class Lane:
    """Rounds one after the other, beside those of other lanes.

    Attributes:
        begin: a context that lasts as long as its rounds, e.g. of a server, and gives what does a round.
        takes: whether it does the round of this number.
    """

    begin: Callable[[], AbstractContextManager[Work]]
    takes: Callable[[int], bool] = every
