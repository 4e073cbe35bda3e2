"""Rounds of a case side by side."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soak.report import Round

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


@contextmanager
def on_each_core(is_short: bool = False) -> Iterator[Executor]:
    """A process for each core, or, where few rounds would wait for it longer than it saves, a thread.

    Ctrl-C is for the suite alone: what has begun is ended, all else is dropped.
    """
    spawn = multiprocessing.get_context("spawn")
    ignored = (signal.SIGINT, signal.SIG_IGN)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(1) if is_short else ProcessPoolExecutor(cores, spawn, signal.signal, ignored) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
