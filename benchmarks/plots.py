"""One picture per figure, drawn from what was measured; the same figure gives the same file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import Samples

_INK = "#33506b"
_STYLE = {"svg.hashsalt": "cloudvid", "svg.fonttype": "none", "font.size": 9}
Panel = Callable[[Axes], None]


def draw(title: str, panels: Sequence[Panel], path: Path) -> None:
    """Write panels side by side as SVG."""
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(7.5, 2.8), layout="constrained")
        all_axes = drawing.subplots(1, len(panels), squeeze=False)
        for axes, panel in zip(all_axes[0], panels, strict=True):
            panel(axes)
            axes.spines[["top", "right"]].set_visible(False)
        drawing.suptitle(title, fontsize=10)
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def arms(unit: str, samples: Samples) -> Panel:
    """Every sample of each arm as a dot, its median as a line."""

    def panel(axes: Axes) -> None:
        names = list(samples[0])
        for place, name in enumerate(names):
            values = sorted(sample[name] for sample in samples)
            axes.plot(values, [place] * len(values), "o", color=_INK, alpha=0.45, markersize=5)
            axes.plot([values[len(values) // 2]] * 2, [place - 0.3, place + 0.3], color="#b3261e")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(unit)

    return panel


def lines(x: str, y: str, series: dict[str, Any]) -> Panel:
    """Each series as a line through its points."""

    def panel(axes: Axes) -> None:
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, label=name)
        axes.set(xlabel=x, ylabel=y)
        axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False)

    return panel


def stacks(unit: str, parts: list[str], bars: dict[str, Any]) -> Panel:
    """Each bar's parts on top of each other."""

    def panel(axes: Axes) -> None:
        so_far = [0.0] * len(bars)
        for part, colour in zip(parts, (_INK, "#b9c8d6"), strict=True):
            values = [bar[part] for bar in bars.values()]
            axes.barh(list(bars), values, left=so_far, color=colour, label=part)
            so_far = [below + value for below, value in zip(so_far, values, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.legend(frameon=False)

    return panel
