"""Processes that share neither memory nor time with this one."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def new_processes(count: int = 1) -> ProcessPoolExecutor:
    """So many, which begin with nothing of this one and leave Ctrl-C to it."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def in_new_process(function: Callable[..., Made], *arguments: object) -> Made:
    """The result of a function."""
    with new_processes() as process:
        return process.submit(function, *arguments).result()
