"""What a figure is, how it is kept, and the tables of them: for the terminal, and for docs/performance.md."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Estimate, Samples

RESULTS = Path(__file__).resolve().parent / "results"
IDS = ("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9")


@dataclass(frozen=True)
class Line:
    """One thing that was measured."""

    what: str
    value: float
    unit: str = ""
    low: float | None = None
    """Of the interval; None where the value is a count or a share that has none."""
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
        """Whether the value is as good as it should be; None where nothing is asked of it."""
        if self.at_most is not None:
            return (self.low if self.equal_counts and self.low is not None else self.value) <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None

    def cells(self) -> list[str]:
        """What was measured, interval, noise floor, to reach, reached."""
        interval = f"{_number(self.low)} to {_number(self.high)}" if self.low is not None else ""
        goal = "" if self.at_most is None else f"≤ {_number(self.at_most)}"
        goal = goal if self.at_least is None else f"≥ {_number(self.at_least)}"
        reached = {True: "yes", False: "no", None: ""}[self.reached]
        unit = f" {self.unit}" if self.unit else ""
        return [f"{_number(self.value)}{unit}", interval, _number(self.floor), f"{goal}{unit if goal else ''}", reached]


@dataclass
class Figure:
    """One of the figures, measured."""

    id: str
    title: str
    lines: list[Line] = field(default_factory=list)
    samples: Any = None
    """All that was measured, as it came."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was asked of the machine: sizes, steps, counts."""
    panels: list[dict[str, Any]] = field(default_factory=list)
    """What to draw beside each other; `plots` knows the kinds."""


def arms_panel(unit: str, samples: Samples) -> dict[str, Any]:
    """Every sample of each arm, to be drawn."""
    return {"kind": "arms", "unit": unit, "samples": samples}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return (
        f"{value:.0f}"
        if abs(value) >= 100 or value == int(value)
        else f"{value:.3g}"
        if abs(value) < 1
        else f"{value:.3f}"
    )


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


def named_runs(results: Path = RESULTS) -> list[Path]:
    """The runs that are documented: those with a name. One named by its time, the default, is its maker's own."""
    folders = sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []
    return [path for path in folders if not path.name[0].isdigit() and any(path.glob("R*.json"))]


def markdown(runs: Sequence[Path]) -> str:
    """The runs beside each other as one Markdown table."""
    if not runs:
        return "Not measured yet: `make bench RUN=first`, then `python docs/generate.py`."
    found = {run.name: _kept(run) for run in runs}
    measured = [column for run in runs for column in (run.name, "noise", "reached")]
    rows = [["", "what", "to reach", *measured], ["---"] * (3 + len(measured))]
    for number in IDS:
        of_run = {name: {line.what: line for line in kept.get(number, [])} for name, kept in found.items()}
        for what in dict.fromkeys(what for lines in of_run.values() for what in lines):
            goal, cells = "", []
            for lines in of_run.values():
                value, interval, noise, goal_here, reached = lines[what].cells() if what in lines else [""] * 5
                goal = goal or goal_here
                cells += [f"{value} ({interval})" if interval else value, noise, reached]
            rows.append([number, what, goal, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _kept(run: Path) -> dict[str, list[Line]]:
    """The lines of a run's figures."""
    return {path.stem: load(path)[0].lines for path in run.glob("R*.json")}


def machines(runs: Sequence[Path]) -> str:
    """On what each run was made, as a Markdown list."""
    lines = []
    for run in runs:
        _, machine = load(sorted(run.glob("R*.json"))[0])
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines.append(
            f"- {run.name}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {versions}"
        )
    return "\n".join(lines)
