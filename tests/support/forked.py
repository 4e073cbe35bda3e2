"""Processes that are there at once: forked from one that has imported what they need.

Python's start and its imports take a command half a second, and two with torch. Here they happen once; each process is
otherwise one of its own, with its arguments, environment, folder, output and exit code.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKSERVER = multiprocessing.get_context("forkserver")
# huggingface_hub reads the environment while it is imported: that is left to each process.
_FORKSERVER.set_forkserver_preload(["__main__", "cloudvid.cli", "httpx2", "torch", "yaml"])
_NOWHERE = (Path(os.devnull), Path(os.devnull))


def start(
    main: str, *arguments: object, cwd: Path, environment: Mapping[str, str], output: tuple[Path, Path] = _NOWHERE
) -> BaseProcess:
    """A process that carries out a function, named as `module:function`, with this command line.

    Args:
        output: files that take what it prints and what it says of errors.
    """
    argv = [main, *map(str, arguments)]
    process = _FORKSERVER.Process(target=_become, args=(main, argv, cwd, dict(environment), output))
    process.start()
    return process


def run(main: str, *arguments: object, cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The same, ended, with its exit code and output."""
    command = [main, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(main, *arguments, cwd=cwd, environment=environment, output=output)
        process.join(timeout=120)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, 120, *(path.read_bytes() for path in output))
        texts = [path.read_bytes().decode() for path in output]  # a carriage return stays one
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def end() -> None:
    """End the process that the others are forked from; it would outlive this one by a moment."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _become(main: str, argv: list[str], cwd: Path, environment: dict[str, str], output: tuple[Path, Path]) -> None:
    for descriptor, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = argv
    module, _, function = main.partition(":")
    sys.exit(getattr(import_module(module), function)())
