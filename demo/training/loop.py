"""The loop that every part is trained by: for so many seconds of work, over as many interruptions as it takes."""

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

import torch
from torch import Tensor, nn

from demo.training.optimizer import MuonAdamW

SAVE_EVERY = 60
"""Seconds between two checkpoints."""
_REPORT_EVERY = 10
_WARM_UP_STEPS = 60


@dataclass(frozen=True)
class Batches:
    """One kind of batch that a network is trained on."""

    name: str
    share: float
    """Of all steps."""
    loss: Callable[[], Tensor]
    """Draws a batch on the network's device, from the default generators, and returns its loss. It never waits for the
    device: on a GPU it runs once, while it is recorded."""


@dataclass(frozen=True)
class Plan:
    """How long a network is trained, and how boldly."""

    seconds: float
    """Of work, without interruptions. The schedule of the learning rate is as long."""
    rate: float
    """Learning rate until `level`, after a warm-up; from there it falls to a hundredth along a cosine."""
    level: float = 0.4
    """Share of the time."""


class Interrupted(Exception):
    """Training was stopped by a signal; its checkpoint is written."""


def train(network: nn.Module, batches: list[Batches], plan: Plan, checkpoint: Path, seed: int) -> nn.Module:
    """Train a network until its plan is fulfilled, and leave it with its averaged weights.

    It resumes from the checkpoint if there is one, so an interrupted run loses at most `SAVE_EVERY` seconds. A finished
    training continues if the plan has more seconds than the checkpoint.

    Args:
        network: on the device to train on.
        batches: kinds of batches.
        plan: how long.
        checkpoint: a file to keep progress in.
        seed: of the batches.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
    """
    run = _Run(network, checkpoint)
    torch.manual_seed(seed + run.steps)
    choose = Random(seed + run.steps)
    steps = {kind.name: _recorded(run, kind) for kind in batches}
    name, clock, worked_before = checkpoint.stem, _work_clock(run.loss.device), run.seconds
    reported = saved = began = clock()
    with _Signals() as signals:
        while run.seconds < plan.seconds:
            done = run.seconds / plan.seconds
            fall = 0 if done < plan.level else (done - plan.level) / (1 - plan.level)
            rate = plan.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * fall)) / 2)
            run.set(rate * min(1, (run.steps - run.resumed_at + 1) / _WARM_UP_STEPS))
            kind = choose.choices(batches, [kind.share for kind in batches])[0]
            steps[kind.name]()
            run.steps += 1
            now = clock()
            run.seconds = worked_before + now - began
            if now - reported > _REPORT_EVERY or run.seconds >= plan.seconds:
                reported, speed = now, (run.steps - run.resumed_at) / (now - began)
                left = max(0, plan.seconds - run.seconds) / 60
                print(
                    f"{name:16} {done:4.0%}  step {run.steps}  loss {run.loss.item():.4f}  {speed:.2f} steps/s  "
                    f"{left:.1f} min left",
                    flush=True,
                )
            if now - saved > SAVE_EVERY or signals.received:
                run.save(checkpoint)
                saved = now
            if signals.received:
                run.use_averages()
                raise Interrupted
    run.save(checkpoint)
    run.use_averages()
    return network


def _work_clock(device: torch.device) -> Callable[[], float]:
    """Seconds of work: on a CPU those of its cores, so that a machine with other work to do only takes longer."""
    if device.type == "cuda":
        return time.monotonic
    return lambda: time.process_time() / torch.get_num_threads()


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Half precision where the device multiplies matrices faster in it: on a GPU, and on a CPU with AMX (bfloat16)."""
    if device.type == "cuda":
        return torch.autocast("cuda", precision, cache_enabled=False)
    return torch.autocast("cpu", torch.bfloat16, torch.cpu.get_capabilities().get("amx_bf16", False), False)


def channels_last(network: nn.Module) -> None:
    """Lay out the kernels of two-dimensional convolutions as the processors' fastest code wants them."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


class _Run:
    """A network under training: its weights, their averages, the optimizer, and how far it is."""

    def __init__(self, network: nn.Module, checkpoint: Path) -> None:
        self._network = network.train()
        self.weights: list[Tensor] = [weight for weight in network.parameters() if weight.requires_grad]
        self._averages = [weight.detach().clone() for weight in self.weights]
        self._optimizer = MuonAdamW(network)
        device = self.weights[0].device
        self._blend = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        """A running mean."""
        self.steps, self.seconds = 0, 0.0
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        if checkpoint.is_file():
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            with torch.no_grad():
                for mine, theirs in zip(
                    [*self.weights, *self._averages], state["weights"] + state["averages"], strict=True
                ):
                    mine.copy_(theirs)
            self._optimizer.load_state_dict(state["optimizer"])
            self.steps, self.seconds = state["steps"], state["seconds"]
            self.loss.fill_(state["loss"])
        self.resumed_at = self.steps

    def set(self, rate: float) -> None:
        """Set the learning rate of the next step, and how much of the averages it replaces."""
        self._optimizer.rate.fill_(rate)
        self._blend.fill_(max(0.001, 10 / (10 + self.steps)))

    def step(self, draw: Callable[[], Tensor]) -> None:
        """One step. It never waits for the device."""
        torch._foreach_zero_([weight.grad for weight in self.weights if weight.grad is not None])
        # Weights that are cast once and kept would be those of the recording.
        with autocast(self.loss.device, torch.bfloat16):
            loss = draw()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            change = torch._foreach_sub(self.weights, self._averages)
            torch._foreach_mul_(change, self._blend)
            torch._foreach_add_(self._averages, change)
            self.loss.lerp_(loss.detach().float(), torch.clamp(self._blend * 5, max=1.0))

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint, as a whole or not at all.

        Raises:
            FloatingPointError: the loss is not finite; the checkpoint stays as it was.
        """
        if not math.isfinite(self.loss.item()):
            raise FloatingPointError(f"{checkpoint.stem}: the loss is {self.loss.item()} after {self.steps} steps")
        state = {
            "weights": [weight.detach() for weight in self.weights],
            "averages": self._averages,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": self.loss.item(),
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, checkpoint)

    def use_averages(self) -> None:
        """Give the network its averaged weights, for use."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self._averages, strict=True):
                weight.copy_(average)
                weight.grad = None
        self._network.eval()


def _recorded(run: _Run, kind: Batches) -> Callable[[], None]:
    """What does a step on a kind of batch.

    On a GPU it is a recorded graph: these networks are too small to keep one busy by launching kernel after kernel.
    """
    if not run.loss.is_cuda:
        return lambda: run.step(kind.loss)
    run.set(0)  # the steps that warm up change nothing
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run.step(kind.loss)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.step(kind.loss)

    def replay() -> None:
        graph.replay()
        torch.cuda.current_stream().synchronize()  # else the clock would run ahead of the work

    return replay


class _Signals:
    """Notes SIGINT and SIGTERM instead of ending at once."""

    received = False

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
