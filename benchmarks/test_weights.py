"""R8: whether workers share the weights' pages. A t2i server on a checkpoint of about a gigabyte in fp16, with one
worker and then with two, each of which has used every weight; what counts is the second one's private memory.

The yardstick is the private memory of a worker whose model is the tiny one, in the same precision: what is over that,
by the bytes of the weights, is what a further worker takes again.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from benchmarks.figures import Line
from benchmarks.outputs import check
from benchmarks.plots import stacks
from cloudvid import Stage
from cloudvid_schema.protocol import TextToImageRequest
from support.processes import in_new_process
from support.servers import Running

_FP16 = {"CLOUDVID_T2I_DTYPE": "fp16"}
_ASKED = TextToImageRequest(prompt="a lamp", width=64, height=64, num_inference_steps=1, seed=7)
_AT_WORK = 0.02  # seconds of a core that a request takes at least


def write_wide_model(directory: Path, width: int) -> int:
    """Save a t2i pipeline whose UNet is wide, in fp16 with random weights; the bytes of its UNet's weights.

    With a width of 1504 these are about a gigabyte; all else is the tiny model's. The attention has as many heads as
    that has, of more channels.
    """
    import torch
    from diffusers import UNet2DConditionModel

    from demo import tiny
    from support.full_size import fill

    pipeline = tiny.text_to_image()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "block_out_channels": (width // 2, width)})
    pipeline.register_modules(unet=fill(unet.eval(), "cpu"))
    pipeline.save_pretrained(directory, variant="fp16")
    return sum(parameter.numel() * parameter.element_size() for parameter in pipeline.unet.parameters())


def memory(pid: int) -> dict[str, float]:
    """MiB of a process, from smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(value.split()[0]) / 1024 for name, _, value in (line.partition(":") for line in lines)}
    return {
        "resident": found["Rss"],
        "private": found["Private_Clean"] + found["Private_Dirty"],
        "shared": found["Shared_Clean"] + found["Shared_Dirty"],
        "proportional": found["Pss"],
    }


def used(running: Running) -> list[dict[str, float]]:
    """Memory of each t2i worker, once each has made a picture."""
    client = running.client()
    workers = {worker.id: worker.pid for worker in client.status(Stage.T2I).workers if worker.pid}
    before = {pid: psutil.Process(pid).cpu_times().user for pid in workers.values()}
    idle = set(before)
    while idle:
        with ThreadPoolExecutor(2 * len(workers)) as pool:
            for made in pool.map(client.send, [_ASKED] * 2 * len(workers)):
                check(made.data, (1, 64, 64, 3))
        idle = {pid for pid in idle if psutil.Process(pid).cpu_times().user - before[pid] < _AT_WORK}
    return [memory(pid) for _, pid in sorted(workers.items())]


@pytest.mark.bench("R8", "Two workers, one copy of the weights")
def test_r8_two_workers_one_copy_of_the_weights(bench):
    model, width = bench.new_folder("wide"), bench.size(1504, 128)
    bench.progress("a checkpoint of about a gigabyte")
    mebibytes = in_new_process(write_wide_model, model, width) / 2**20
    found = {}
    with (
        bench.server("t2i", models={"t2i": model}, settings=_FP16, wait=False) as large,
        bench.server("t2i", settings=_FP16) as small,
    ):
        (found["tiny"],) = used(small)
        large.client().wait_until_ready(Stage.T2I)
        (found["alone"],) = used(large)
        large.client().scale(Stage.T2I, 2)
        found["first of two"], found["second of two"] = used(large)
    tiny, second = found["tiny"]["private"], found["second of two"]["private"]
    together = found["first of two"]["proportional"] + found["second of two"]["proportional"]
    lines = [
        Line("weights of the checkpoint", mebibytes, "MiB"),
        Line("private memory of a worker with the tiny model", tiny, "MiB"),
        Line("private memory of the second worker", second, "MiB"),
        Line("both workers together (proportional)", together, "MiB"),
        Line("of the weights, that the second worker takes again", 100 * (second - tiny) / mebibytes, "%", at_most=10),
    ]
    panel = stacks("MiB", ["private", "shared"], found)
    bench.keep(lines, found, {"width": width, "precision": "fp16"}, panel)
