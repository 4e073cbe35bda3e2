"""R7: what the client can do. Batches against a server that answers at once, with and without waiting for the disk,
and the client's memory over thousands of scenes.

What is on record is kept in memory, one entry a scene, so memory grows by that; files must not stay in it.
"""

import contextlib
import shutil
from collections.abc import Iterator
from multiprocessing import Pipe, get_context

import pytest

from benchmarks import lone_client
from benchmarks.figures import Line
from benchmarks.measure import AGAIN, interleave, median, noise_floor, ratio, straight_line
from benchmarks.outputs import WrongOutput, check
from benchmarks.plots import lines as lines_panel
from support.instant_server import serve
from support.processes import in_new_process


@contextlib.contextmanager
def instant_server(side: int) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that answers at once, and the bytes of its picture and its clip."""
    here, there = Pipe()
    process = get_context("spawn").Process(target=serve, args=(side, there))
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.bench("R7", "The client alone")
def test_r7_client_alone(bench):
    count, side = bench.size(300, 10), bench.size(256, 64)
    batches: list[dict] = []

    def batch(count: int, syncs: bool) -> dict:
        """What a batch of so many scenes says of itself; its files are looked at and removed."""
        folder = bench.new_folder()
        measured = in_new_process(lone_client.batch, url, folder, count, syncs)
        numbers = [measured["done"], *(len(list(folder.glob(kind))) for kind in ("*.png", "*.mp4"))]
        if numbers != [count] * 3:
            raise WrongOutput(f"{numbers} of {count} scenes are done, pictures, clips")
        check((folder / "s0_base_image.png").read_bytes(), (1, side, side, 3))
        check((folder / "s0_video.mp4").read_bytes(), (8, side, side, 3))
        shutil.rmtree(folder)
        return measured | {"syncs": syncs}

    def seconds(syncs: bool) -> float:
        batches.append(batch(count, syncs))
        return batches[-1]["seconds"] / count

    with instant_server(side) as (url, sizes):
        ways = {"as it is": lambda: seconds(True), "without fsync": lambda: seconds(False)}
        samples = interleave(ways, bench.size(2, 1), again="as it is", progress=bench.progress)
        bench.progress("the client's memory")
        long = batch(bench.size(1200, 40), True)
    _, slope = straight_line(long["memory"][len(long["memory"]) // 10 :])
    floor = noise_floor(samples, "as it is")
    as_is = [each for each in batches if each["syncs"]]
    per_second = median([1 / sample[way] for sample in samples for way in ("as it is", "as it is" + AGAIN)])
    waited = {name: median([each["fsync_ms"][name] for each in as_is]) for name in ("files", "folder", "manifest")}
    lines = [
        Line.of("scenes a second", per_second, floor=floor, at_least=50),
        Line.of("CPU of the client, a scene", median([1000 * each["cpu_seconds"] / count for each in as_is]), "ms"),
        Line("memory, a scene", 1024 * slope.value, "KiB", at_most=sum(sizes) / 1024 / 10),
        Line.of("time, as it is / without fsync", ratio(samples, "as it is", "without fsync"), floor=floor),
        *(Line.of(f"waiting for fsync of the {name}, a scene", value, "ms") for name, value in waited.items()),
    ]
    raw = {"rounds": samples, "batches": batches, "long": long}
    panel = lines_panel("scenes done", "MiB of the client", {"resident": long["memory"]})
    bench.keep(lines, raw, {"scenes": count, "picture_and_clip_bytes": sizes}, panel)
