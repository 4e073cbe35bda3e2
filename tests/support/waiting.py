"""Waiting for what happens in another process."""

import time
from collections.abc import Callable


def until(holds: Callable[[], object], what: str = "", seconds: float = 120.0) -> None:
    """Return once something holds; a busy machine may be slow.

    Raises:
        AssertionError: it does not hold in time.
    """
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what or holds}"
        time.sleep(0.05)
