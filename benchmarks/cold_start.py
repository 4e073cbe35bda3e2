"""R6: how long until a request can be served. From the start of TorchServe until both stages are READY, and from asking
for a further i2v worker until it is, against bare processes that import the pipeline's class, load the same model and
do nothing else: one a stage, both at once, as the server's workers are.
"""

import contextlib
import os
import subprocess
import sys
import time

from figures import Figure, Line, arms_panel
from measure import AGAIN, interleave, median, noise_floor, ratio
from outputs import check
from stand import ONE_THREAD, ROOT, Stand, WrongOutput

from cloudvid import Stage

_LOOK_SECONDS = 0.2  # more often, and the asking takes part of a core from what it waits for
_CLASSES = {Stage.T2I: "StableDiffusionPipeline", Stage.I2V: "StableVideoDiffusionPipeline"}


def bare(stand: Stand, *stages: Stage) -> float:
    """Seconds until a bare process for each stage has its pipeline loaded."""
    began = stand.clock()
    with contextlib.ExitStack() as running:
        processes = []
        for stage in stages:
            command = [sys.executable, str(ROOT / "benchmarks/bare_load.py"), _CLASSES[stage], str(stand.models[stage])]
            process = subprocess.Popen(
                command,
                env=os.environ | ONE_THREAD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            processes.append(running.enter_context(process))
            running.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise WrongOutput("a bare process did not load its model")
        return stand.clock() - began


def measure(stand: Stand) -> Figure:
    """Rounds of server, bare, further worker, bare again."""
    asked = stand.scenes(1)[0].t2i_request()
    added: list[dict[str, float]] = []
    started: list[float] = []

    def quickly(seconds: float) -> None:
        time.sleep(min(seconds, _LOOK_SECONDS))

    def server() -> float:
        began = stand.clock()
        with stand.torchserve(wait=False) as running:
            client = running.client(sleep=quickly)
            while not running.server.listens():
                time.sleep(_LOOK_SECONDS)
            started.append(stand.clock() - began)
            client.wait_until_ready(timeout=180)
            seconds = stand.clock() - began
            check(client.send(asked).data, (1, asked.height, asked.width, 3))
            began = stand.clock()
            client.scale(Stage.I2V, 2)
            added.append({"worker": stand.clock() - began})
        added[-1]["bare"] = bare(stand, Stage.I2V)
        return seconds

    arms = {"server": server, "bare": lambda: bare(stand, *Stage), "bare" + AGAIN: lambda: bare(stand, *Stage)}
    if stand.smoke:
        del arms["bare" + AGAIN]
    else:
        bare(stand, *Stage)  # what is read from the disk for the first time
    samples = interleave(arms, stand.size(2, 1), stand.told)
    floor = None if stand.smoke else noise_floor(samples, "bare").value
    lines = [
        Line.of("both READY / bare processes", ratio(samples, "server", "bare"), floor=floor, at_most=1.3),
        Line.of("start to both READY", median([sample["server"] for sample in samples]), "s"),
        Line.of("of it until TorchServe listens", median(started), "s"),
        Line.of("further worker / bare process", ratio(added, "worker", "bare"), floor=floor, at_most=1.3),
        Line.of("further worker to READY", median([sample["worker"] for sample in added]), "s"),
    ]
    return Figure(
        "R6",
        "Cold start",
        lines,
        {"rounds": samples, "added": added, "listens": started},
        {"models": "tiny"},
        [arms_panel("seconds", samples)],
    )
