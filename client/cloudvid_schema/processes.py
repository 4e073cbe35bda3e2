"""Processes and ports: signals as interrupts, children that do not outlive their parent, ports that are in use."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

_AGAIN_SECONDS = 0.5
_WATCH_SECONDS = 0.5


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise `KeyboardInterrupt` as Ctrl-C does, unless they are ignored (nohup).

    Python drops an exception that a signal handler raises inside a finalizer or a weak reference's callback. So it is
    raised again every half second until it has been caught.
    """
    is_over = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_over:
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if sys.exc_info()[0] is None:  # otherwise the block is already being left
            raise KeyboardInterrupt

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in [*wanted, signal.SIGALRM]}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        is_over = True  # a signal from here on must not set the timer again
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def end_with(parent: int, end: Callable[[], None] = lambda: os._exit(0)) -> None:
    """Watch the parent process in a thread, and end this process when the parent has gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        end()

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def taken_ports(ports: Iterable[int]) -> list[int]:
    """Those of these ports on 127.0.0.1 that are in use."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(port)
    return taken
