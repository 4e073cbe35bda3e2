"""Disks that fail, or that keep a record of what is done to them."""

import os
import re
import sys
from pathlib import Path

from cloudvid import Client, parse_scenes, render
from cloudvid_schema.files import Disk
from support.folders import scenes


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


class Recording(Disk):
    """Keeps every operation and the name of its file or folder, in order; writes in a row count as one."""

    def __init__(self):
        self.operations, self._names = [], {}

    def _keep(self, operation, name):
        if self.operations[-1:] != [("write", name)] or operation != "write":
            self.operations.append((operation, name))

    def open(self, path, flags):
        handle = super().open(path, flags)
        name = "folder" if flags & os.O_DIRECTORY else re.sub(r"\.[0-9a-f]{8}\.part$", ".part", path.name)
        self._names[handle] = name
        self._keep("append to" if flags & os.O_APPEND else "open", name)
        return handle

    def write(self, handle, data):
        self._keep("write", self._names[handle])
        return super().write(handle, data)

    def fsync(self, handle):
        self._keep("fsync", self._names[handle])
        super().fsync(handle)

    def replace(self, source, target):
        self._keep("replace", target.name)
        super().replace(source, target)


def main() -> None:
    """A batch of one scene in a process that ends at a file operation: URL FOLDER OPERATION."""
    url, folder, at = sys.argv[1:]
    client = Client(url, management=url, token="t")
    list(render(parse_scenes(scenes(1)), client, Path(folder), disk=Faulty(int(at), "exit")))
