"""What it takes to load each stage at its true size on this machine's CPU and to serve one small request.

    python benchmarks/full_size_serving.py DIRECTORY [--dtype fp16] [--output benchmarks/results/full_size.json]

The weights are those of full_size.py; what is missing below the directory is made. Each stage has a process of its own,
so that its peak of memory is its own, and takes the way that a worker takes: `load`, then `run`. Two requests: the
first also reads the weights from their files.
"""

import argparse
import importlib.metadata
import io
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import torch
from full_size import ROOT, Case, write
from outputs import check
from PIL import Image

from cloudvid_schema.jobs import Job, OnStep, Output, ignore
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.text_to_image import TextToImage

SMALLEST = {Stage.T2I: Case(Stage.T2I, 64, 64, 1), Stage.I2V: Case(Stage.I2V, 64, 64, 1, 2)}


def load(stage: Stage, model: Path, gpu_id: int | None, **settings: Any) -> Any:
    """The stage as a worker loads it, with these settings and none of this shell's."""
    for name in [name for name in os.environ if name.startswith("CLOUDVID_")]:
        del os.environ[name]
    return {Stage.T2I: TextToImage, Stage.I2V: ImageToVideo}[stage].load({"model": str(model), **settings}, gpu_id)


def request(case: Case, steps: int) -> tuple[TextToImageRequest | ImageToVideoRequest, bytes | None]:
    """A request of the server's defaults in all else, and its picture; always the same."""
    asked: dict[str, Any] = {"width": case.width, "height": case.height, "num_inference_steps": steps, "seed": 7}
    if case.stage == Stage.T2I:
        return TextToImageRequest(prompt="a lighthouse at dawn", **asked), None
    picture = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((case.width, case.height)).save(picture, "PNG")
    return ImageToVideoRequest(num_frames=case.frames, **asked), picture.getvalue()


def pixels_of(data: bytes, case: Case) -> np.ndarray:
    """The pixels of the file that was made, N×H×W×3 uint8.

    Raises:
        WrongOutput: another size or number of frames, or one colour throughout, which is what NaN becomes.
    """
    return check(data, (case.frames, case.height, case.width, 3))


def serve(loaded: Any, case: Case, steps: int, on_step: OnStep = ignore) -> Output:
    """The output of one request, alone.

    Raises:
        Exception: whatever the request failed with.
    """
    (outcome,) = loaded.run([Job(*request(case, steps), on_step=on_step)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def describe_machine() -> dict[str, Any]:
    """The device and the versions."""
    packages = ("torch", "diffusers", "transformers", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    machine: dict[str, Any] = {"device": platform.machine(), "cores": os.cpu_count(), "versions": versions}
    if torch.cuda.is_available():
        pynvml.nvmlInit()
        properties = torch.cuda.get_device_properties(0)
        machine |= {"device": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
        machine["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return machine


def _memory() -> dict[str, int]:
    """MiB of this process: most resident at once so far; now its own; now pages of files, which processes share."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    status = {name: value.split()[0] for name, _, value in lines if value.strip()}
    return {
        name: int(status[key]) // 1024 for name, key in (("peak", "VmHWM"), ("own", "RssAnon"), ("of_files", "RssFile"))
    }


def _measure(stage: Stage, model: Path, dtype: str, started: float) -> dict[str, Any]:
    """Load a stage and serve two requests, in this process."""
    case = SMALLEST[stage]
    result: dict[str, Any] = {
        "stage": stage,
        "case": str(case),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "start_seconds": time.time() - started,
        "memory": {"before": _memory()},
        "requests": [],
    }
    began, worked = time.perf_counter(), time.process_time()
    loaded = load(stage, model, None, dtype=dtype)
    result["load"] = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    result["memory"]["loaded"] = _memory()
    for _ in range(2):
        began, worked = time.perf_counter(), time.process_time()
        output = serve(loaded, case, case.steps)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
        result["requests"].append({"seconds": seconds, "cpu_seconds": cpu_seconds, "milliseconds": output.timings})
    pixels_of(output.data, case)
    result["memory"]["served"] = _memory()
    return result


def main() -> int:
    """Measure, print, and keep the samples."""
    parser = argparse.ArgumentParser(description="Load and serve the full-size models on the CPU.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--stages", nargs="+", type=Stage, default=list(Stage), metavar="t2i|i2v")
    parser.add_argument("--dtype", nargs="+", choices=("fp16", "bf16", "fp32"), default=["fp16"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/full_size.json")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the server has it; for the processes that measure
    samples = []
    print("seconds (of a core): load, first request, second; MiB: peak when loaded, when served; own, of files")
    for stage in options.stages:
        model = write(options.directory, stage)
        for dtype in options.dtype:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                sample = process.submit(_measure, stage, model, dtype, time.time()).result()
            samples.append(sample)
            times = [f"{t['seconds']:.2f} ({t['cpu_seconds']:.2f})" for t in (sample["load"], *sample["requests"])]
            loaded, served = sample["memory"]["loaded"], sample["memory"]["served"]
            mib = [loaded["peak"], served["peak"], served["own"], served["of_files"]]
            print(stage, dtype, *(f"{text:>16}" for text in times), *(f"{number:7}" for number in mib), flush=True)
    result = {"machine": describe_machine(), "samples": samples}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
