"""R3: what batches of pictures gain on one thread. Servers whose t2i.yaml has `batchSize` 1, 4 and 8 are each asked for
the same sixteen pictures at once.

The tiny model at 64×64, where a step is many small operations: that is where a batch can gain on a CPU. A batch
that is full goes at once, so the delay for late requests does not count. Batch 1 and batch N differ in the last bits:
how many files are nevertheless the same is counted.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from figures import Figure, Line, arms_panel
from measure import AGAIN, interleave, noise_floor, ratio
from outputs import check
from stand import Stand, WrongOutput

from cloudvid import Client, Stage
from cloudvid_schema.protocol import TextToImageRequest

_SIZES = (4, 8)
_DELAY = 2000  # ms that a batch waits to be full; only one that is not full waits
_LAST_BITS = 8  # of 255: rounding in another order, not another picture


def pictures(requests: list[TextToImageRequest], client: Client) -> list[bytes]:
    """All of them asked for at once."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return [made.data for made in pool.map(client.send, requests)]


def measure(stand: Stand) -> Figure:
    """Rounds of batch 1, 4, 8, and 1 again."""
    asked = {"width": 64, "height": 64, "num_inference_steps": stand.size(12, 2)}
    requests = [
        TextToImageRequest(prompt=f"a lighthouse at dawn, number {seed}", seed=seed, embed_recipe=False, **asked)
        for seed in range(stand.size(16, 8))
    ]
    files: dict[int, list[bytes]] = {}
    with contextlib.ExitStack() as servers:
        stand.told("servers with batchSize 4 and 8")
        stores = {size: stand.archive("t2i", batchSize=size, maxBatchDelay=_DELAY) for size in _SIZES}
        started = {
            size: servers.enter_context(stand.torchserve("t2i", store=store, wait=False))
            for size, store in stores.items()
        }
        clients = {1: stand.shared.client()} | {size: running.client() for size, running in started.items()}
        for client in clients.values():
            client.wait_until_ready(Stage.T2I)

        def timed(size: int) -> float:
            began = stand.clock()
            files[size] = pictures(requests, clients[size])
            return stand.clock() - began

        arms = {f"batch {size}": lambda size=size: timed(size) for size in clients}
        arms["batch 1" + AGAIN] = lambda: timed(1)
        for size in clients:
            timed(size)
        samples = interleave(arms, stand.size(4, 1), stand.told)
    shape = (1, asked["height"], asked["width"], 3)
    for size in _SIZES:
        for alone, together in zip(files[1], files[size], strict=True):
            off = np.abs(check(alone, shape).astype(int) - check(together, shape)).max()
            if off > _LAST_BITS:
                raise WrongOutput(f"batch {size} makes another picture: {off} of 255 off")
    floor = noise_floor(samples, "batch 1").value
    lines = [Line(f"pictures a second, batch 1, {len(requests)} at once", _per_second(samples, "batch 1", requests))]
    for size in _SIZES:
        gain = ratio(samples, "batch 1", f"batch {size}")
        same = sum(one == other for one, other in zip(files[1], files[size], strict=True))
        goal = {"at_least": 1.6} if size == 4 else {}
        lines += [
            Line.of(f"throughput, batch {size} / batch 1", gain, floor=floor, **goal),
            Line(f"files of batch {size} that are those of batch 1, of {len(requests)}", same),
        ]
    return Figure(
        "R3",
        "Batches of pictures on one thread",
        lines,
        {"rounds": samples},
        asked,
        [arms_panel(f"seconds for {len(requests)} pictures", samples)],
    )


def _per_second(samples: list[dict[str, float]], arm: str, requests: list[TextToImageRequest]) -> float:
    return len(requests) / sorted(sample[arm] for sample in samples)[len(samples) // 2]
