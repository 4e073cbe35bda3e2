"""How two ways to do the same are compared: arms in turn, the same arm twice, medians of paired ratios."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Samples = list[dict[str, float]]
"""Of each round: every arm's value."""
AGAIN = " again"
"""What the name of an arm ends with that is another arm once more."""
_RESAMPLES = 2000
_CUT = _RESAMPLES // 40
Made = TypeVar("Made")


@dataclass(frozen=True)
class Estimate:
    """A median, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """The seconds that something takes, and its result."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def interleave(
    arms: Mapping[str, Callable[[], float]],
    rounds: int,
    again: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Samples:
    """What each arm returned in each round. Each round begins with the next arm, so that none is always the first.

    Args:
        again: the arm that runs twice, for the noise floor.
    """
    arms = {**arms, **({again + AGAIN: arms[again]} if again else {})}
    names = list(arms)
    samples: Samples = []
    for number in range(rounds):
        first = number % len(names)
        values = {name: arms[name]() for name in names[first:] + names[:first]}
        samples.append({name: values[name] for name in names})
        progress(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {values[name]:.3f}" for name in names))
    return samples


def median(values: Sequence[float]) -> Estimate:
    """The median with a bootstrap interval, whose resampling is the same every time."""
    source = random.Random(0)
    drawn = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return Estimate(statistics.median(values), drawn[_CUT], drawn[-1 - _CUT])


def ratio(samples: Samples, over: str, under: str) -> Estimate:
    """The median over the rounds of one arm's value by another's; of an arm that ran twice the mean counts."""
    return median([_value(sample, over) / _value(sample, under) for sample in samples])


def noise_floor(samples: Samples, arm: str) -> float:
    """The ratio of an arm to itself."""
    return statistics.median(sample[arm + AGAIN] / sample[arm] for sample in samples)


def _value(sample: dict[str, float], arm: str) -> float:
    return statistics.mean([sample[arm], *([sample[arm + AGAIN]] if arm + AGAIN in sample else [])])


def straight_line(points: Sequence[tuple[float, float]]) -> tuple[Estimate, Estimate]:
    """Value at zero and slope of the line through the medians of the points that share an abscissa.

    Raises:
        ValueError: all points have one abscissa.
    """
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    if len(by_x) < 2:
        raise ValueError("a line takes two points")
    source = random.Random(0)

    def fitted(middle: Callable[[list[float]], Any]) -> tuple[float, float]:
        slope, at_zero = statistics.linear_regression(list(by_x), [middle(values) for values in by_x.values()])
        return at_zero, slope

    best = fitted(statistics.median)
    drawn = [fitted(lambda ys: statistics.median(source.choices(ys, k=len(ys)))) for _ in range(_RESAMPLES)]
    ordered = [sorted(values) for values in zip(*drawn, strict=True)]
    at_zero, slope = (Estimate(value, ends[_CUT], ends[-1 - _CUT]) for value, ends in zip(best, ordered, strict=True))
    return at_zero, slope
