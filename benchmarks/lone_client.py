"""A batch through `render` in a process that does nothing else: `python lone_client.py URL FOLDER COUNT [--no-fsync]`.

It prints seconds, this process's memory as scenes were done, and milliseconds a scene that it waited for the disk.
"""

import json
import os
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "client"))

from cloudvid import Client, parse_scenes, render  # noqa: E402
from cloudvid.events import SceneDone  # noqa: E402
from cloudvid.outputs import Disk  # noqa: E402

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


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Carry the batch out."""
    url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    scenes = parse_scenes([{"id": f"s{index}", "scene_desc": f"scene {index}"} for index in range(count)])
    disk, done, memory = TimedDisk("--no-fsync" not in sys.argv), 0, []
    client = Client(url, management=url, token="t")
    began, worked = time.perf_counter(), time.process_time()
    for event in render(scenes, client, folder, disk=disk):
        if isinstance(event, SceneDone):
            done += 1
            if done % max(1, count // _LOOKS) == 0:
                memory.append([done, resident()])
    seconds = time.perf_counter() - began
    waited = {name: 1000 * value / count for name, value in disk.seconds.items()}
    cpu = time.process_time() - worked
    print(json.dumps({"done": done, "seconds": seconds, "cpu_seconds": cpu, "memory": memory, "fsync_ms": waited}))


if __name__ == "__main__":
    main()
