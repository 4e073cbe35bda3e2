"""What is said while a command waits for a server."""

import sys
from collections.abc import Callable

from cloudvid.errors import ServerUnavailable


def said_once() -> Callable[[ServerUnavailable], None]:
    """Says to standard error what is waited for, when that changes."""
    said = ""

    def tell(error: ServerUnavailable) -> None:
        nonlocal said
        text = str(error).partition("; `cloudvid wait`")[0]
        if text != said:
            said = text
            print(f"waiting: {said}", file=sys.stderr, flush=True)

    return tell
