"""R7: what the client can do. Batches against a server that answers at once, with and without waiting for the disk,
and the client's memory over thousands of scenes.

What is on record is kept in memory, one entry a scene, so memory grows by that; files must not stay in it.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from figures import Figure, Line
from measure import AGAIN, interleave, median, noise_floor, ratio, straight_line
from outputs import check
from stand import ROOT, Stand, WrongOutput


@contextlib.contextmanager
def instant_server(side: int) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that answers at once, and the bytes of its picture and its clip."""
    command = [sys.executable, str(ROOT / "benchmarks/instant_server.py"), str(side)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            yield f"http://127.0.0.1:{said['port']}", said["bytes"]
        finally:
            process.kill()


def batch(stand: Stand, url: str, count: int, side: int, *options: str) -> dict[str, Any]:
    """What a batch of so many scenes says of itself; its files are looked at and removed."""
    folder = stand.new_folder()
    command = [sys.executable, str(ROOT / "benchmarks/lone_client.py"), url, str(folder), str(count), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    said: dict[str, Any] = json.loads(done.stdout)
    if said["done"] != count or len(list(folder.glob("*.png"))) != count or len(list(folder.glob("*.mp4"))) != count:
        raise WrongOutput(f"{said['done']} of {count} scenes are done")
    check((folder / "s0_base_image.png").read_bytes(), (1, side, side, 3))
    check((folder / "s0_video.mp4").read_bytes(), (8, side, side, 3))
    shutil.rmtree(folder)
    return said


def measure(stand: Stand) -> Figure:
    """Rounds of as it is, without fsync, as it is again; then one long batch."""
    count, side = stand.size(300, 10), stand.size(256, 64)
    batches: list[dict[str, Any]] = []

    with instant_server(side) as (url, sizes):

        def seconds(*options: str) -> float:
            said = batch(stand, url, count, side, *options)
            batches.append({"options": options, **said})
            return float(said["seconds"]) / count

        arms = {
            "as it is": seconds,
            "without fsync": lambda: seconds("--no-fsync"),
            "as it is" + AGAIN: seconds,
        }
        samples = interleave(arms, stand.size(2, 1), stand.told)
        stand.told("the client's memory")
        long = batch(stand, url, stand.size(1200, 40), side)
    points = [(done, mebibytes) for done, mebibytes in long["memory"][len(long["memory"]) // 10 :]]
    _, slope = straight_line(points)
    floor = noise_floor(samples, "as it is").value
    as_is = [said for said in batches if not said["options"]]
    per_second = median([1 / sample[arm] for sample in samples for arm in ("as it is", "as it is" + AGAIN)])
    waited = {name: median([said["fsync_ms"][name] for said in as_is]) for name in ("files", "folder", "manifest")}
    lines = [
        Line.of("scenes a second", per_second, floor=floor, at_least=50),
        Line.of("CPU of the client, a scene", median([1000 * said["cpu_seconds"] / count for said in as_is]), "ms"),
        Line("memory, a scene", 1024 * slope.value, "KiB", at_most=sum(sizes) / 1024 / 10),
        Line.of("time, as it is / without fsync", ratio(samples, "as it is", "without fsync"), floor=floor),
        *(Line.of(f"waiting for fsync of the {name}, a scene", value, "ms") for name, value in waited.items()),
    ]
    return Figure(
        "R7",
        "The client alone",
        lines,
        {"rounds": samples, "batches": batches, "long": long},
        {"scenes": count, "picture_and_clip_bytes": sizes},
        [{"kind": "lines", "x": "scenes done", "y": "MiB of the client", "series": {"resident": long["memory"]}}],
    )
