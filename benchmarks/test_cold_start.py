"""R6: how long until a request can be served. From the start of TorchServe until both stages are READY, and from asking
for a further i2v worker until it is, against bare processes that import the pipeline's class, load the same model and
do nothing else: one a stage, both at once, as the server's workers are.
"""

import contextlib
import subprocess
import sys
import time

import pytest

from benchmarks.figures import Line
from benchmarks.measure import interleave, median, noise_floor, ratio, timed
from benchmarks.outputs import WrongOutput, check
from benchmarks.plots import arms
from cloudvid import Stage

_LOOK_SECONDS = 0.2  # more often, and the asking takes part of a core from what it waits for
_CLASSES = {Stage.T2I: "StableDiffusionPipeline", Stage.I2V: "StableVideoDiffusionPipeline"}
# It stays: a process that ends takes time too, and a worker does not end.
_BARE = """
import sys, diffusers
getattr(diffusers, sys.argv[1]).from_pretrained(sys.argv[2], local_files_only=True)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.bench("R6", "Cold start")
def test_r6_cold_start(bench):
    asked = bench.scenes(1)[0].t2i_request()
    added: list[dict[str, float]] = []
    started: list[float] = []

    def bare(*stages: Stage) -> float:
        """Seconds until a bare process for each stage has its pipeline loaded."""
        began = time.perf_counter()
        with contextlib.ExitStack() as running:
            processes = []
            for stage in stages:
                command = [sys.executable, "-c", _BARE, _CLASSES[stage], bench.models[stage]]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                processes.append(running.enter_context(subprocess.Popen(command, text=True, **pipes)))
                running.callback(processes[-1].kill)
            for process in processes:
                if process.stdout.readline() != "ready\n":
                    raise WrongOutput("a bare process did not load its model")
            return time.perf_counter() - began

    def server() -> float:
        began = time.perf_counter()
        with bench.server(wait=False) as running:
            client = running.client(sleep=lambda seconds: time.sleep(min(seconds, _LOOK_SECONDS)))
            while not running.process.listens():
                time.sleep(_LOOK_SECONDS)
            started.append(time.perf_counter() - began)
            client.wait_until_ready(timeout=180)
            seconds = time.perf_counter() - began
            check(client.send(asked).data, (1, asked.height, asked.width, 3))
            added.append({"worker": timed(lambda: client.scale(Stage.I2V, 2))[0]})
        added[-1]["bare"] = bare(Stage.I2V)
        return seconds

    again = None if bench.is_smoke else "bare"
    if again:
        bare(*Stage)  # what is read from the disk for the first time
    ways = {"server": server, "bare": lambda: bare(*Stage)}
    samples = interleave(ways, bench.size(2, 1), again, bench.progress)
    floor = noise_floor(samples, again) if again else None
    lines = [
        Line.of("both READY / bare processes", ratio(samples, "server", "bare"), floor=floor, at_most=1.3),
        Line.of("start to both READY", median([sample["server"] for sample in samples]), "s"),
        Line.of("of it until TorchServe listens", median(started), "s"),
        Line.of("further worker / bare process", ratio(added, "worker", "bare"), floor=floor, at_most=1.3),
        Line.of("further worker to READY", median([sample["worker"] for sample in added]), "s"),
    ]
    raw = {"rounds": samples, "added": added, "listens": started}
    bench.keep(lines, raw, {"models": "tiny"}, arms("seconds", samples))
