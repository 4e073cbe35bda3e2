"""R8: whether workers share the weights' pages. A t2i server on a checkpoint of about a gigabyte in fp16, with one
worker and then with two, each of which has used every weight; what counts is the second one's private memory.

The yardstick is the private memory of a worker whose model is the tiny one, in the same precision: what is over that,
by the bytes of the weights, is what a further worker takes again.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from figures import Figure, Line
from outputs import check
from stand import ROOT, Running, Stand

from cloudvid import Stage
from cloudvid_schema.protocol import TextToImageRequest

_FP16 = {"CLOUDVID_T2I_DTYPE": "fp16"}
_ASKED = TextToImageRequest(prompt="a lamp", width=64, height=64, num_inference_steps=1, seed=7)
_AT_WORK = 0.02  # seconds of a core that a request takes at least


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


def used(running: Running) -> dict[str, dict[str, float]]:
    """Memory of the t2i workers, by their numbers, once each has made a picture."""
    client = running.client()
    workers = {worker.id: worker.pid for worker in client.status(Stage.T2I).workers if worker.pid}
    before = {pid: psutil.Process(pid).cpu_times().user for pid in workers.values()}
    idle = set(before)
    while idle:
        with ThreadPoolExecutor(2 * len(workers)) as pool:
            for made in pool.map(client.send, [_ASKED] * 2 * len(workers)):
                check(made.data, (1, 64, 64, 3))
        idle = {pid for pid in idle if psutil.Process(pid).cpu_times().user - before[pid] < _AT_WORK}
    return {number: memory(pid) for number, pid in sorted(workers.items())}


def measure(stand: Stand) -> Figure:
    """One worker of each model, then a second of the large one."""
    model = stand.new_folder("wide")
    command = [sys.executable, str(ROOT / "benchmarks/wide_checkpoint.py"), str(model)]
    environment = {"PYTHONPATH": f"{ROOT / 'client'}:{ROOT / 'handlers'}"}
    stand.told("a checkpoint of about a gigabyte")
    said = subprocess.run(
        [*command, str(stand.size(1504, 128))], capture_output=True, text=True, check=True, env=environment
    )
    mebibytes = int(said.stdout.split()[-1]) / 2**20
    found = {}
    with (
        stand.torchserve(Stage.T2I, models={Stage.T2I: model}, settings=_FP16, wait=False) as large,
        stand.torchserve(Stage.T2I, settings=_FP16) as small,
    ):
        (found["tiny"],) = used(small).values()
        large.client().wait_until_ready(Stage.T2I)
        (found["alone"],) = used(large).values()
        large.client().scale(Stage.T2I, 2)
        found["first of two"], found["second of two"] = used(large).values()
    again = found["second of two"]["private"] - found["tiny"]["private"]
    lines = [
        Line("weights of the checkpoint", mebibytes, "MiB"),
        Line("private memory of a worker with the tiny model", found["tiny"]["private"], "MiB"),
        Line("private memory of the second worker", found["second of two"]["private"], "MiB"),
        Line("both workers together (proportional)", _together(found), "MiB"),
        Line("of the weights, that the second worker takes again", 100 * again / mebibytes, "%", at_most=10),
    ]
    return Figure(
        "R8",
        "Two workers, one copy of the weights",
        lines,
        found,
        {"width": stand.size(1504, 128), "precision": "fp16"},
        [{"kind": "stacks", "unit": "MiB", "parts": ["private", "shared"], "bars": found}],
    )


def _together(found: dict[str, dict[str, float]]) -> float:
    return found["first of two"]["proportional"] + found["second of two"]["proportional"]
