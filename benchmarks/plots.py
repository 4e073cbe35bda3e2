"""One picture per figure, drawn from what was measured; the same figure gives the same file."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "cloudvid", "svg.fonttype": "none", "font.size": 9}

from figures import Figure  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

_INK = "#33506b"


def draw(figure: Figure, path: Path) -> Path:
    """Write a figure's plot as SVG."""
    panels = figure.panels
    drawing, all_axes = pyplot.subplots(1, len(panels), figsize=(7.5, 2.8), squeeze=False, layout="constrained")
    for axes, panel in zip(all_axes[0], panels, strict=True):
        _KINDS[panel["kind"]](axes, panel)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.suptitle(f"{figure.id}: {figure.title}", fontsize=10)
    drawing.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(drawing)
    return path


def _arms(axes: Axes, panel: dict[str, Any]) -> None:
    """Every sample of each arm as a dot, its median as a line."""
    rounds = panel["samples"]
    names = list(rounds[0])
    for place, name in enumerate(names):
        values = sorted(sample[name] for sample in rounds)
        axes.plot(values, [place] * len(values), "o", color=_INK, alpha=0.45, markersize=5)
        axes.plot([values[len(values) // 2]] * 2, [place - 0.3, place + 0.3], color="#b3261e")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(panel["unit"])


def _lines(axes: Axes, panel: dict[str, Any]) -> None:
    """Each series as a line through its points."""
    for name, points in panel["series"].items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1, label=name)
    axes.set_xlabel(panel["x"])
    axes.set_ylabel(panel["y"])
    axes.set_ylim(bottom=0)
    if len(panel["series"]) > 1:
        axes.legend(frameon=False)


def _stacks(axes: Axes, panel: dict[str, Any]) -> None:
    """Each bar's parts on top of each other."""
    bars, so_far = panel["bars"], [0.0] * len(panel["bars"])
    for part, colour in zip(panel["parts"], (_INK, "#b9c8d6"), strict=False):
        values = [bar[part] for bar in bars.values()]
        axes.barh(list(bars), values, left=so_far, color=colour, label=part)
        so_far = [below + value for below, value in zip(so_far, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(panel["unit"])
    axes.legend(frameon=False)


_KINDS = {"arms": _arms, "lines": _lines, "stacks": _stacks}
