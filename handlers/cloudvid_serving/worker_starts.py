"""How often the workers of a server have started: each notes its start in a folder that they and the exporter share.

A worker that TorchServe restarts keeps its socket, so a second start with the same one means that the first has died.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict


class Restarts(TypedDict):
    """Of a stage's workers since the server's start."""

    count: int
    last: float
    """Unix time; 0 if there was none."""


class WorkerStarts:
    """The folder of a server's starts; by default below the TMPDIR that its processes share."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / "starts"

    def clear(self) -> None:
        """Forget an earlier server's."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def note(self, stage: str, arguments: Sequence[str]) -> None:
        """Note the start of a worker process with this command line."""
        names = list(arguments)
        socket = names[names.index("--sock-name") + 1] if "--sock-name" in names[:-1] else f"process {os.getpid()}"
        with suppress(OSError):  # a full disk keeps no worker from its work
            self._folder.mkdir(exist_ok=True, mode=0o700)
            with (self._folder / stage).open("a") as file:
                file.write(json.dumps([socket, time.time()]) + "\n")

    def restarts(self, stage: str) -> Restarts:
        """How often workers of a stage were started again, and when last."""
        found, known = Restarts(count=0, last=0.0), set[str]()
        with suppress(OSError):
            for line in (self._folder / stage).read_text().splitlines():
                with suppress(ValueError):  # a line that was cut off
                    socket, at = json.loads(line)
                    if socket in known:
                        found = Restarts(count=found["count"] + 1, last=at)
                    known.add(socket)
        return found
