"""The monolith as a process of its own: told which scenes to make, it says how long that took."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stand import ONE_THREAD, ROOT, Stand

from cloudvid import Scene, Stage


class Monolith:
    """benchmarks/monolith.py, running."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def make(self, scenes: Sequence[Scene], folder: Path) -> float:
        """Have the files of these scenes made; the seconds that it says it took.

        Raises:
            RuntimeError: it ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [scene.model_dump(mode="json", exclude_unset=True) for scene in scenes]
        self._process.stdin.write(json.dumps({"scenes": asked, "folder": str(folder)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the monolith ended")
        return float(json.loads(answer)["seconds"])


@contextlib.contextmanager
def monolith(stand: Stand, threads: int = 1) -> Iterator[Monolith]:
    """The monolith for the time of the block."""
    command = [sys.executable, str(ROOT / "benchmarks/monolith.py"), *(str(stand.models[stage]) for stage in Stage)]
    environment = os.environ | (ONE_THREAD if threads == 1 else {"OMP_NUM_THREADS": str(threads)})
    log = (stand.folder / "monolith.log").open("ab")
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as process:
        try:
            yield Monolith(process)
        finally:
            process.kill()
            log.close()
