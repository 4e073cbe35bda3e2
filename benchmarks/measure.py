"""How two ways to do the same are compared: arms in turn, the same arm twice, medians of paired ratios."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Samples = list[dict[str, float]]
"""Of each round: every arm's value."""
AGAIN = " again"
"""What the name of an arm ends with that is another arm once more."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def interleave(
    arms: Mapping[str, Callable[[], float]], rounds: int, told: Callable[[str], None] = lambda text: None
) -> Samples:
    """What each arm returned in each round. Each round begins with the next arm, so that none is always the first."""
    names = list(arms)
    samples: Samples = []
    for number in range(rounds):
        first = number % len(names)
        values = {name: arms[name]() for name in names[first:] + names[:first]}
        samples.append({name: values[name] for name in names})
        told(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {values[name]:.3f}" for name in names))
    return samples


def median(values: Sequence[float]) -> Estimate:
    """The median with a bootstrap interval, whose resampling is the same every time."""
    source = random.Random(0)
    drawn = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    cut = _RESAMPLES // 40
    return Estimate(statistics.median(values), drawn[cut], drawn[-1 - cut])


def ratio(samples: Samples, over: str, under: str) -> Estimate:
    """The median over the rounds of one arm's value by another's; of an arm that ran twice the mean counts."""
    return median([_value(sample, over) / _value(sample, under) for sample in samples])


def noise_floor(samples: Samples, arm: str) -> Estimate:
    """The ratio of an arm to itself."""
    return median([sample[arm + AGAIN] / sample[arm] for sample in samples])


def _value(sample: dict[str, float], arm: str) -> float:
    return statistics.mean([sample[arm], *([sample[arm + AGAIN]] if arm + AGAIN in sample else [])])


def straight_line(points: Sequence[tuple[float, float]]) -> tuple[Estimate, Estimate]:
    """Value at zero and slope of the line through the medians of the points that share an abscissa.

    Raises:
        ValueError: the points have one abscissa alone.
    """
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    if len(by_x) < 2:
        raise ValueError("a line takes two points")
    source = random.Random(0)
    drawn = [
        _fit({x: statistics.median(source.choices(values, k=len(values))) for x, values in by_x.items()})
        for _ in range(_RESAMPLES)
    ]
    best = _fit({x: statistics.median(values) for x, values in by_x.items()})
    cut = _RESAMPLES // 40
    ends = [sorted(line[part] for line in drawn) for part in (0, 1)]
    return tuple(  # type: ignore[return-value]
        Estimate(value, ordered[cut], ordered[-1 - cut]) for value, ordered in zip(best, ends, strict=True)
    )


def _fit(points: Mapping[float, float]) -> tuple[float, float]:
    slope, at_zero = statistics.linear_regression(list(points), list(points.values()))
    return at_zero, slope
