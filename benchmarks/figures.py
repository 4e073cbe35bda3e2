"""What a figure is, how it is kept, and the tables of them: for the terminal, and for docs/performance.md."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Estimate

RESULTS = Path(__file__).resolve().parent / "results"
DOCUMENTED = RESULTS / "latest"
"""The run that docs/performance.md shows."""


@dataclass(frozen=True)
class Line:
    """One thing that was measured."""

    what: str
    value: float
    unit: str = ""
    low: float | None = None
    """Of the interval; None for a count or a share, which has none."""
    high: float | None = None
    floor: float | None = None
    """The noise floor: an arm's ratio to itself in the same run."""
    at_most: float | None = None
    at_least: float | None = None
    equal_counts: bool = False
    """Whether it is enough that the interval reaches there: as good as, as far as one can tell."""

    @classmethod
    def of(cls, what: str, estimate: Estimate, unit: str = "", **more: Any) -> "Line":
        """A line of an estimate."""
        return cls(what, estimate.value, unit, estimate.low, estimate.high, **more)

    @property
    def reached(self) -> bool | None:
        """Whether the value is as good as it should be; None if no goal is set."""
        if self.at_most is not None:
            return (self.low if self.equal_counts and self.low is not None else self.value) <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    def cells(self) -> list[str]:
        """What was measured, interval, noise floor, to reach, reached."""
        unit = f" {self.unit}" if self.unit else ""
        interval = f"{_number(self.low)} to {_number(self.high)}" if self.low is not None else ""
        goal = f"≤ {_number(self.at_most)}{unit}" if self.at_most is not None else ""
        goal = f"≥ {_number(self.at_least)}{unit}" if self.at_least is not None else goal
        reached = {True: "yes", False: "no", None: ""}[self.reached]
        return [f"{_number(self.value)}{unit}", interval, _number(self.floor), goal, reached]


@dataclass
class Figure:
    """One of the figures, measured.

    Attributes:
        samples: all that was measured, as it came.
        about: what was asked of the machine: sizes, steps, counts.
    """

    id: str
    title: str
    lines: list[Line]
    samples: Any
    about: dict[str, Any]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.3f}"


def save(figure: Figure, machine: dict[str, Any], folder: Path) -> Path:
    """Write a figure as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.id}.json"
    document = {"machine": machine, **asdict(figure)}
    for line, kept in zip(figure.lines, document["lines"], strict=True):
        kept["reached"] = line.reached
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    return path


def load(path: Path) -> tuple[Figure, dict[str, Any]]:
    """A figure that was kept, and the machine that it was measured on."""
    document = json.loads(path.read_text())
    machine = document.pop("machine")
    lines = [Line(**{key: value for key, value in line.items() if key != "reached"}) for line in document.pop("lines")]
    return Figure(lines=lines, **document), machine


def table(figures: Iterable[Figure]) -> str:
    """The figures as text for a terminal."""
    rows = [["id", "what", "measured", "95 % interval", "noise", "to reach", "reached"]]
    rows += [[figure.id, line.what, *line.cells()] for figure in figures for line in figure.lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(run: Path = DOCUMENTED) -> str:
    """A run's figures as a Markdown table, and the machine that they were measured on."""
    rows = [["", "what", "to reach", "measured", "noise", "reached"], ["---"] * 6]
    machine: dict[str, Any] = {}
    for path in sorted(run.glob("R*.json")):
        figure, machine = load(path)
        for line in figure.lines:
            value, interval, noise, goal, reached = line.cells()
            rows.append([figure.id, line.what, goal, f"{value} ({interval})" if interval else value, noise, reached])
    if not machine:
        return "Not measured yet: `make bench RUN=latest`, then `python docs/generate.py`."
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    measured_on = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {versions}."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", f"Measured on: {measured_on}"])
