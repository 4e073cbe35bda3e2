"""R3: what batches of pictures gain on one thread. Servers whose t2i.yaml has `batchSize` 1, 4 and 8 are each asked for
the same sixteen pictures at once. The tiny model at 64×64, where a step is many small operations: that is where a batch
can gain on a CPU. A batch that is full goes at once, so the delay for late requests does not count. Batch 1 and batch N
differ in the last bits: how many files are nevertheless the same is counted.

R4: what a second i2v worker gains. The same clips through a server with one worker, and through one that `Client.scale`
gave a second.
"""

import contextlib
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.figures import Line
from benchmarks.measure import interleave, noise_floor, ratio, timed
from benchmarks.outputs import WrongOutput, check
from benchmarks.plots import arms
from cloudvid import Client, Scene, Stage
from cloudvid_schema.protocol import TextToImageRequest
from deploy import archives
from support import ROOT
from support.changed_archives import set_values

_SIZES = (4, 8)
_DELAY = 2000  # ms that a batch waits to be full; only one that is not full waits
_LAST_BITS = 8  # of 255: rounding in another order, not another picture


def pictures(requests: list[TextToImageRequest], client: Client) -> list[bytes]:
    """All of them asked for at once."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return [made.data for made in pool.map(client.send, requests)]


@pytest.mark.bench("R3", "Batches of pictures on one thread")
def test_r3_batches_of_pictures(bench, server):
    asked = {"width": 64, "height": 64, "num_inference_steps": bench.size(12, 2)}
    requests = [
        TextToImageRequest(prompt=f"a lighthouse at dawn, number {seed}", seed=seed, embed_recipe=False, **asked)
        for seed in range(bench.size(16, 8))
    ]
    files: dict[int, list[bytes]] = {}
    with contextlib.ExitStack() as servers:
        clients = {1: server.client()}
        for size in _SIZES:
            store = bench.new_folder("store")
            config = Path(shutil.copy(ROOT / "handlers/t2i.yaml", store))
            set_values(config, batchSize=size, maxBatchDelay=_DELAY)
            archives.build("t2i", store, "0", config)
            clients[size] = servers.enter_context(bench.server("t2i", store=store, wait=False)).client()
        for client in clients.values():
            client.wait_until_ready(Stage.T2I)

        def batch(size: int) -> float:
            seconds, files[size] = timed(lambda: pictures(requests, clients[size]))
            return seconds

        ways = {f"batch {size}": lambda size=size: batch(size) for size in clients}
        for way in ways.values():
            way()
        samples = interleave(ways, bench.size(4, 1), again="batch 1", progress=bench.progress)
    shape = (1, asked["height"], asked["width"], 3)
    count, floor = len(requests), noise_floor(samples, "batch 1")
    per_second = count / statistics.median_high(sample["batch 1"] for sample in samples)
    lines = [Line(f"pictures a second, batch 1, {count} at once", per_second)]
    for size in _SIZES:
        for single, together in zip(files[1], files[size], strict=True):
            off = np.abs(check(single, shape).astype(int) - check(together, shape)).max()
            if off > _LAST_BITS:
                raise WrongOutput(f"batch {size} makes another picture: {off} of 255 off")
        gain = ratio(samples, "batch 1", f"batch {size}")
        same = sum(one == other for one, other in zip(files[1], files[size], strict=True))
        goal = {"at_least": 1.6} if size == 4 else {}
        lines += [
            Line.of(f"throughput, batch {size} / batch 1", gain, floor=floor, **goal),
            Line(f"files of batch {size} that are those of batch 1, of {count}", same),
        ]
    bench.keep(lines, {"rounds": samples}, asked, arms(f"seconds for {count} pictures", samples))


def clips(scenes: list[Scene], picture: bytes, client: Client, workers: int) -> list[bytes]:
    """A clip of each scene, with one request for each worker and one that waits, as a batch has."""
    with ThreadPoolExecutor(workers + 1) as pool:
        return [made.data for made in pool.map(lambda scene: client.send(scene.i2v_request(), picture), scenes)]


@pytest.mark.bench("R4", "A second i2v worker")
def test_r4_second_worker(bench, server, two_workers):
    one, two = server.client(), two_workers.client()
    scenes = bench.scenes(bench.size(6, 3), clip_steps=4)
    count, side, frames = len(scenes), scenes[0].t2i_params.width, scenes[0].i2v_params.num_frames
    picture = one.send(scenes[0].t2i_request()).data
    expected = clips(scenes, picture, one, 1)
    for clip in expected:
        check(clip, (frames, side, side, 3))
    clips(scenes[:4], picture, two, 2)  # both have made one before

    def batch(client: Client, workers: int) -> float:
        seconds, made = timed(lambda: clips(scenes, picture, client, workers))
        if made != expected:
            raise WrongOutput("two workers make other clips than one")
        return seconds

    ways = {"1 worker": lambda: batch(one, 1), "2 workers": lambda: batch(two, 2)}
    samples = interleave(ways, bench.size(3, 1), again="1 worker", progress=bench.progress)
    gain, floor = ratio(samples, "1 worker", "2 workers"), noise_floor(samples, "1 worker")
    line = Line.of(f"{count} clips, 1 worker / 2 workers", gain, floor=floor, at_least=1.8)
    about = scenes[0].model_dump(mode="json", exclude_unset=True)["i2v_params"]
    bench.keep([line], {"rounds": samples}, about, arms(f"seconds for {count} clips", samples))
