"""A disk that fails."""

import os
import sys
from pathlib import Path

from folders import scenes

from cloudvid import Client, parse_scenes, render
from cloudvid.outputs import Disk


class Faulty(Disk):
    """Fails at one operation, or writes only a part there."""

    def __init__(self, at, fault):
        self.operations, self._at, self._fault = 0, at, fault

    def _count(self):
        self.operations += 1
        return self.operations == self._at

    def _fail(self):
        if self._fault == "exit":
            os._exit(9)
        raise OSError(self._fault, os.strerror(self._fault))

    def open(self, path, flags):
        if self._count() and self._fault != "short":
            self._fail()
        return super().open(path, flags)

    def write(self, handle, data):
        if self._count():
            written = super().write(handle, data[: max(1, len(data) // 2)])
            if self._fault != "short":
                self._fail()
            return written
        return super().write(handle, data)

    def fsync(self, handle):
        if self._count() and self._fault != "short":
            self._fail()
        super().fsync(handle)

    def replace(self, source, target):
        if self._count() and self._fault != "short":
            self._fail()
        super().replace(source, target)


def main() -> None:
    """A batch of one scene in a process that ends at a file operation: URL FOLDER OPERATION."""
    url, folder, at = sys.argv[1:]
    client = Client(url, management=url, token="t")
    list(render(parse_scenes(scenes(1)), client, Path(folder), disk=Faulty(int(at), "exit")))
