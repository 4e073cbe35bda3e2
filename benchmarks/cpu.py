"""What it takes to load each stage at its true size on this machine's CPU and to serve one small request.

    PYTHONPATH=client:handlers:tests python -m benchmarks.cpu DIRECTORY [--dtype fp16] [--output FILE]

The weights are those of support/full_size.py; what is missing below the directory is made. Each stage has a process of
its own, so that its peak of memory is its own, and takes the way that a worker takes: `load`, then `run`. Two requests:
the first also reads the weights from their files.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import RESULTS
from benchmarks.measure import Made
from benchmarks.outputs import check
from cloudvid_schema.protocol import Stage
from support import prepare_process, stages
from support.full_size import Case, write
from support.machine import describe
from support.processes import in_new_process

PACKAGES = ("torch", "diffusers", "transformers", "safetensors")
SMALLEST = {Stage.T2I: Case(Stage.T2I, 64, 64, 1), Stage.I2V: Case(Stage.I2V, 64, 64, 1, 2)}


def _memory() -> dict[str, int]:
    """MiB of this process: most resident at once so far; now its own; now pages of files, which processes share."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    status = {name: value.split()[0] for name, _, value in lines if value.strip()}
    names = {"peak": "VmHWM", "own": "RssAnon", "of_files": "RssFile"}
    return {name: int(status[key]) // 1024 for name, key in names.items()}


def _timed(work: Callable[[], Made]) -> tuple[dict[str, float], Made]:
    began, worked = time.perf_counter(), time.process_time()
    made = work()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}, made


def _measure(stage: Stage, model: Path, dtype: str, started: float) -> dict[str, Any]:
    """Load a stage and serve two requests, in this process."""
    case = SMALLEST[stage]
    result = {"stage": stage, "case": str(case), "dtype": dtype, "threads": torch.get_num_threads()}
    result |= {"load_average": os.getloadavg()[0], "start_seconds": time.time() - started, "requests": []}
    memory = {"before": _memory()}
    result["load"], loaded = _timed(lambda: stages.load(model, stage, dtype=dtype))
    memory["loaded"] = _memory()
    for _ in range(2):
        took, output = _timed(lambda: stages.run(loaded, *case.request(case.steps)))
        result["requests"].append(took | {"milliseconds": output.timings})
    check(output.data, case.shape)
    memory["served"] = _memory()
    return result | {"memory": memory}


def main() -> None:
    """Measure, print, and keep the samples."""
    parser = argparse.ArgumentParser(description="Load and serve the full-size models on the CPU.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", nargs="+", choices=("fp16", "bf16", "fp32"), default=["fp16"])
    parser.add_argument("--output", type=Path, default=RESULTS / "full_size.json")
    options = parser.parse_args()
    prepare_process()  # this one's environment is that of the processes that measure
    samples = []
    print("seconds (of a core): load, first request, second; MiB: peak when loaded, when served; own, of files")
    for stage in Stage:
        model = write(options.directory, stage)
        for dtype in options.dtype:
            sample = in_new_process(_measure, stage, model, dtype, time.time())
            samples.append(sample)
            times = [f"{t['seconds']:.2f} ({t['cpu_seconds']:.2f})" for t in (sample["load"], *sample["requests"])]
            loaded, served = sample["memory"]["loaded"], sample["memory"]["served"]
            mib = [loaded["peak"], served["peak"], served["own"], served["of_files"]]
            print(stage, dtype, *(f"{text:>16}" for text in times), *(f"{number:7}" for number in mib), flush=True)
    result = {"machine": describe(*PACKAGES), "samples": samples}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
