"""What a command prints while it waits for a server."""

import sys
import time
from collections.abc import Callable

from cloudvid.endpoints.errors import ServerUnavailable


def said_once(after: float = 0.0, clock: Callable[[], float] = time.monotonic) -> Callable[[ServerUnavailable], None]:
    """A callback that prints the reason for waiting to stderr when it changes.

    Args:
        after: seconds of silence at first, for a server that has just been started.
        clock: monotonic seconds.
    """
    said, began = "", clock()

    def tell(error: ServerUnavailable) -> None:
        nonlocal said
        text = str(error).partition("; `cloudvid wait`")[0]
        if text != said and clock() - began >= after:
            said = text
            print(f"waiting: {said}", file=sys.stderr, flush=True)

    return tell
