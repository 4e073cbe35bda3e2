"""A batch through `render`, for a process that does nothing else."""

import os
import resource
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cloudvid import Client, parse_scenes, render
from cloudvid.batch.events import SceneDone
from cloudvid_schema.files import Disk

_LOOKS = 40


class TimedDisk(Disk):
    """The disk, with the time that each of its calls takes, by what it is for."""

    def __init__(self, syncs: bool) -> None:
        self._syncs, self._lock, self._names = syncs, threading.Lock(), dict[int, str]()
        self.seconds: Counter[str] = Counter()

    def open(self, path: Path, flags: int) -> int:
        handle = super().open(path, flags)
        of = "folder" if flags & os.O_DIRECTORY else "manifest" if path.name.endswith(".jsonl") else "files"
        self._names[handle] = of
        return handle

    def fsync(self, handle: int) -> None:
        began = time.perf_counter()
        if self._syncs:
            super().fsync(handle)
        with self._lock:
            self.seconds[self._names[handle]] += time.perf_counter() - began


def batch(url: str, folder: Path, count: int, syncs: bool) -> dict[str, Any]:
    """Scenes done of a batch, its seconds, MiB of this process meanwhile, and ms a scene waiting for the disk."""
    scenes = parse_scenes([{"id": f"s{index}", "scene_desc": f"scene {index}"} for index in range(count)])
    disk, done, memory = TimedDisk(syncs), 0, []
    client = Client(url, management=url, token="t")
    began, worked = time.perf_counter(), time.process_time()
    for event in render(scenes, client, folder, disk=disk):
        if isinstance(event, SceneDone):
            done += 1
            if done % max(1, count // _LOOKS) == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory.append([done, pages * resource.getpagesize() / 2**20])
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    waited = {name: 1000 * value / count for name, value in disk.seconds.items()}
    return {"done": done, "seconds": seconds, "cpu_seconds": cpu, "memory": memory, "fsync_ms": waited}
