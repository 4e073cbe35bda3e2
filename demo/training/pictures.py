"""Pictures and clips to train on, rendered by all cores: the same seed and index always make the same one."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from random import Random
from typing import TypeVar

import numpy as np

from demo.painting import paint
from demo.scenes import Scene, random_scene

Size = tuple[int, int]
"""Width and height in pixels."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Still:
    """A picture and the scene that it shows."""

    index: int
    """In its sequence."""
    scene: Scene
    pixels: np.ndarray
    """H×W×3 uint8, RGB."""


@dataclass(frozen=True)
class Clip:
    """Pictures of a scene that moves."""

    scene: Scene
    step: float
    """Of the scene's time between two frames; see `scenes.time_step`."""
    frames: np.ndarray
    """N×H×W×3 uint8, RGB."""


def still(size: Size, seed: int, index: int) -> Still:
    """One still of a sequence."""
    scene, random = scene_of_still(size, seed, index)
    # What a clip shows later is a picture too.
    return Still(index, scene, paint(scene, *size, time=random.choice((0, random.uniform(0, 8)))))


def scene_of_still(size: Size, seed: int, index: int) -> tuple[Scene, Random]:
    """The scene of a still, and the chance that goes on from there."""
    width, height = size
    random = Random(f"still {width}x{height} {seed} {index}")
    return random_scene(random, width / height), random


def clip(size: Size, frames: int, seed: int, index: int) -> Clip:
    """One clip of a sequence; most move about as much as clips do by default."""
    width, height = size
    random = Random(f"clip {width}x{height}x{frames} {seed} {index}")
    scene = random_scene(random, width / height)
    step = random.choice((random.uniform(0, 0.25), random.uniform(0.15, 0.7), random.uniform(0.4, 1.2)))
    start = random.choice((0, random.uniform(0, 6)))
    painted = [paint(scene, width, height, time=start + step * frame) for frame in range(frames)]
    return Clip(scene, step, np.stack(painted))


def stills(size: Size, count: int, seed: int) -> Iterator[Still]:
    """The first stills of a sequence, in order."""
    return _rendered(partial(still, size, seed), count, chunk=16)


def clips(size: Size, frames: int, count: int, seed: int) -> Iterator[Clip]:
    """The first clips of a sequence, in order."""
    return _rendered(partial(clip, size, frames, seed), count, chunk=1)


def _rendered(make: Callable[[int], _T], count: int, chunk: int) -> Iterator[_T]:
    # Forking would copy torch's threads and the CUDA context.
    with ProcessPoolExecutor(cpu_count(), get_context("spawn"), _leave_interrupts_to_the_parent) as pool:
        yield from pool.map(make, range(count), chunksize=chunk)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
