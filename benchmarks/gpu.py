"""What the stages reach on this GPU with models of the true sizes and each speed setting: seconds, memory, and the
share of what the GPU does in one large matrix product.

    PYTHONPATH=client:handlers:tests python -m benchmarks.gpu [--seconds 540] [--models DIRECTORY] [--output FILE]

With `--smoke` it uses tiny models, on a CPU too: are the outputs right? Its times mean nothing.

Each arm is loaded and served by the stages' own classes. The weights are random (support/full_size.py), which changes
the pixels and not the work. The most important arms come first, and results are written after each, so that a run that
is cut short has them; an arm that is refused, fails or is not reached is listed with the reason. The eager arm runs
twice: its ratio to itself is the noise floor.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu import PACKAGES
from benchmarks.figures import RESULTS
from benchmarks.measure import timed
from benchmarks.outputs import WrongOutput, check
from cloudvid_schema.protocol import Stage
from cloudvid_stages.memory import free_memory
from cloudvid_stages.settings import SettingsError
from demo import tiny
from support import prepare_process, stages
from support.full_size import RECKONED, Case, work, write
from support.machine import describe, describe_gpu


@dataclass(frozen=True)
class Arm:
    """One way to run the stages."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    on_all: bool = True
    """Whether every case is run, or only the smallest."""


ARMS = (
    EAGER := Arm("eager"),
    Arm("compile full", {"compile": "full"}),
    EAGER_AGAIN := Arm("eager again"),
    Arm("deep_cache 3", {"deep_cache": 3}),
    Arm("compile regional", {"compile": "regional"}),
    Arm("channels_last", {"channels_last": True}),
    Arm("fuse_qkv", {"fuse_qkv": True}),
    Arm("regional, deep_cache 3", {"compile": "regional", "deep_cache": 3}),
    Arm("full, last, fused", {"compile": "full", "channels_last": True, "fuse_qkv": True}),
    Arm("attention xformers", {"attention": "xformers"}),
    *(Arm(f"offload {way}", {"offload": way}, on_all=False) for way in ("model", "group", "sequential")),
)
SMOKE_CASES = (Case(Stage.T2I, 64, 64, 4), Case(Stage.T2I, 128, 64, 4), Case(Stage.I2V, 128, 64, 4, 3))
WARM_UP_STEPS = 4  # more than deep_cache's interval
REPEATS = 3
ENOUGH_SECONDS = 10  # of samples: if they are fewer than asked for by then, they stay so
ON_GPU = torch.cuda.is_available()


@dataclass
class Cell:
    """One arm on one case."""

    arm: Arm
    case: Case
    state: str = "not run"
    """`measured`, `refused`, `failed`, `wrong` or `not run`."""
    reason: str = "the time was up"
    load_seconds: float | None = None
    """Loading and the server's own warm-up."""
    warm_up_seconds: float | None = None
    samples: list[dict[str, float]] = field(default_factory=list)
    """Seconds of the phases; `encode` is all that follows the VAE's last work."""
    peak_bytes: int | None = None
    off_eager: list[float] = field(default_factory=list)
    """Of each sample: the largest difference of a value of its pixels from the first of the eager arm, of 255."""

    def fail(self, error: Exception) -> None:
        """Note why it has no result, or none that counts."""
        kinds = {SettingsError: "refused", WrongOutput: "wrong"}
        # A setting that is refused has no cause beneath; a warm-up that went wrong has.
        self.state = "failed" if error.__cause__ else kinds.get(type(error), "failed")
        self.reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"

    def seconds(self, *phases: str) -> float:
        """Median over the samples, of these phases together."""
        return statistics.median(sum(sample[phase] for phase in phases) for sample in self.samples)


def settle() -> None:
    """Wait for the GPU, if any."""
    if ON_GPU:
        torch.cuda.synchronize()


def matmul_ceiling(size: int) -> dict[str, Any]:
    """TFLOP/s of a square matrix product of random values: each sample over ten of them, the best is the ceiling."""
    device, dtype = ("cuda", torch.float16) if ON_GPU else ("cpu", torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            a @ b
        settle()

    settle()
    samples = [10 * 2 * size**3 / timed(ten)[0] / 1e12 for _ in range(8)]
    return {"size": size, "dtype": str(dtype), "samples": samples, "best": max(samples)}


def run_once(loaded: Any, case: Case, steps: int) -> tuple[dict[str, float], np.ndarray]:
    """Seconds of each phase of one request, and the pixels. The GPU is only waited for at the end of a phase."""
    ends: dict[str, float] = {}

    def on_step(phase: str, step: int, steps: int) -> None:
        if step == steps and phase != "encode":
            settle()
            ends[phase] = time.perf_counter()

    settle()
    began = time.perf_counter()
    output = stages.run(loaded, *case.request(steps), on_step)
    ended = time.perf_counter()
    denoised, decoded = ends["denoise"], ends["decode"]
    seconds = {"denoise": denoised - began, "decode": decoded - denoised, "encode": ended - decoded}
    return seconds | {"memory_retries": output.memory_retries}, check(output.data, case.shape)


def measure(loaded: Any, cell: Cell, repeats: int, eager: dict[Case, np.ndarray]) -> None:
    """Fill in one cell: a short run that warms up, then the samples."""
    cell.warm_up_seconds, _ = timed(lambda: run_once(loaded, cell.case, WARM_UP_STEPS))
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    while len(cell.samples) < repeats and sum(sum(sample.values()) for sample in cell.samples) < ENOUGH_SECONDS:
        seconds, pixels = run_once(loaded, cell.case, cell.case.steps)
        if cell.arm is EAGER:
            eager.setdefault(cell.case, pixels)
        if cell.case in eager:
            cell.off_eager.append(int(np.abs(pixels.astype(np.int16) - eager[cell.case]).max()))
        cell.samples.append(seconds)
        cell.state, cell.reason = "measured", ""
        cell.peak_bytes = torch.cuda.max_memory_allocated() if ON_GPU else None


def run_arm(cells: list[Cell], model: Path, repeats: int, eager: dict[Case, np.ndarray]) -> None:
    """Load one arm of one stage, warm for its first case, and measure its cases. Whatever fails, the next can run."""
    torch.compiler.reset()
    free_memory()
    first, settings = cells[0].case, {"warm_up": [cells[0].case.size], **cells[0].arm.settings}
    try:
        load_seconds, loaded = timed(lambda: stages.load(model, first.stage, 0, **settings))
    except Exception as error:
        for cell in cells:
            cell.fail(error)
        return
    for cell in cells:
        cell.load_seconds = load_seconds
        try:
            measure(loaded, cell, repeats, eager)
        except Exception as error:
            cell.fail(error)


def in_order(cells: list[Cell]) -> list[list[Cell]]:
    """What is loaded and measured together, the most important first.

    The eager arm has its cases together. Each other arm is first run on the first case of each stage, and on the others
    once all arms have had that: a further size is minutes of compiling, and a long clip.
    """
    groups: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in cells:
        earlier = [other for other in cells if other.arm is cell.arm and other.case.stage == cell.case.stage]
        turn = 0 if cell.arm is EAGER else earlier.index(cell)
        groups.setdefault((turn, ARMS.index(cell.arm), list(Stage).index(cell.case.stage)), []).append(cell)
    return [groups[key] for key in sorted(groups)]


def print_table(result: dict[str, Any], cells: list[Cell]) -> None:
    """What was measured of each case, or why nothing was."""
    ceiling = result["ceiling"]
    product = (
        f"{ceiling['best']:.4g} TFLOP/s ({ceiling['dtype']}, {ceiling['size']}³, best of {len(ceiling['samples'])})"
    )
    print(f"\n{result['machine']}\nlargest matrix product: {product}\n")
    columns = ("seconds", "denoise", "decode", "encode", "TFLOP/s", "share", "× eager", "off", "peak GiB", "load s")
    print("off: the largest difference of a value of the pixels from eager's, of 255")
    print(f"{'case':28}{'arm':24}" + "".join(f"{column:>9}" for column in columns))
    eager = {cell.case: cell.seconds("denoise", "decode") for cell in cells if cell.arm is EAGER and cell.samples}
    order = list(dict.fromkeys(cell.case for cell in cells))
    for cell in sorted(cells, key=lambda cell: order.index(cell.case)):
        figures: list[Any] = []
        if cell.samples:
            seconds, counted = cell.seconds("denoise", "decode"), result["work"].get(str(cell.case))
            # What deep_cache leaves out would count as done.
            rate = counted["whole"] / seconds if counted and "deep_cache" not in cell.arm.settings else None
            gain = eager[cell.case] / seconds if counted and cell.case in eager else None
            figures += [f"{value:.3f}" for value in (seconds, *map(cell.seconds, ("denoise", "decode", "encode")))]
            figures += [f"{rate:.1f}", f"{rate / ceiling['best']:.1%}"] if rate else ["-", "-"]
            figures += [f"{gain:.3f}" if gain else "-", max(cell.off_eager, default="-")]
            figures += [f"{cell.peak_bytes / 2**30:.2f}" if cell.peak_bytes else "-", f"{cell.load_seconds:.1f}"]
        reason = "" if cell.state == "measured" else f"  {cell.state}: {cell.reason}"
        print(f"{cell.case!s:28}{cell.arm.name:24}" + "".join(f"{figure:>9}" for figure in figures) + reason)


def main() -> int:
    """Measure, print, and keep the samples."""
    parser = argparse.ArgumentParser(description="The full-size stages on a GPU.")
    parser.add_argument("--seconds", type=float, default=540, help="time for everything; what is left then is not run")
    parser.add_argument("--models", type=Path, help="folder that has full-size models, or keeps those that are made")
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], metavar="ARM", help="only these")
    parser.add_argument("--smoke", action="store_true", help="check the outputs of tiny models")
    parser.add_argument("--output", type=Path, help="where to keep the samples: benchmarks/results/gpu.json")
    options = parser.parse_args()
    began = time.perf_counter()
    if not (ON_GPU or options.smoke):
        print("torch sees no CUDA GPU here; --smoke runs tiny models on the CPU", file=sys.stderr)
        return 2
    prepare_process()
    output = options.output or (None if options.smoke else RESULTS / "gpu.json")
    if not ON_GPU:
        # The graphs are made all the same, and run as they are: their code for a CPU takes minutes to compile.
        torch.compile = functools.partial(torch.compile, backend="eager")
    cases = SMOKE_CASES if options.smoke else tuple(RECKONED)
    chosen = [arm for arm in ARMS if not options.arms or arm.name in options.arms]
    cells = [Cell(arm, case) for arm in chosen for case in cases if arm.on_all or case is cases[0]]
    result: dict[str, Any] = {"smoke": options.smoke, "machine": describe(*PACKAGES) | describe_gpu()}
    result["machine"]["compile_backend"] = "inductor" if ON_GPU else "eager"

    def save() -> None:
        if output:
            measured = [dataclasses.asdict(cell) | {"case": str(cell.case)} for cell in cells]
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(result | {"cells": measured}, indent=2, ensure_ascii=False) + "\n")

    result["ceiling"] = matmul_ceiling(256 if options.smoke else 8192)
    result["work"] = {} if options.smoke else {str(case): work(case) for case in cases}
    eager: dict[Case, np.ndarray] = {}
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # no error, so nothing that handles errors stops it
    signal.setitimer(signal.ITIMER_REAL, max(0.001, began + options.seconds - time.perf_counter()), 10)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as folder:
        models = options.models or Path(folder)
        made = tiny.write(models) if options.smoke else {stage: write(models, stage, "cuda") for stage in Stage}
        for group in in_order(cells):
            run_arm(group, made[group[0].case.stage], 1 if options.smoke else REPEATS, eager)
            save()
            done = f"{group[0].arm.name}, {', '.join(str(cell.case) for cell in group)}"
            print(f"{time.perf_counter() - began:6.1f} s: {done}", file=sys.stderr)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for cell in cells:
        if options.smoke and cell.arm in (EAGER, EAGER_AGAIN) and any(cell.off_eager):
            cell.state, cell.reason = "wrong", f"not what the first run made: {cell.off_eager}"
    save()
    print_table(result, cells)
    return int(any(cell.state in ("failed", "wrong") for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
