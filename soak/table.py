"""What the suite showed, as a table: on the screen, and in docs/reliability.md from soak/results/report.json."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak import ROOT
from soak.cases import CASES

RESULTS = ROOT / "soak/results"
REPORT = "report.json"
DOCUMENT = ROOT / "docs/reliability.md"
_BEGIN, _END = "<!-- results: written by python -m soak -->", "<!-- end of results -->"
Result = dict[str, Any]


def keep(results: Sequence[Result], folder: Path) -> None:
    """Put whole runs of cases on record, each in the place of an older one."""
    if not results:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT
    kept = {result["id"]: result for result in _read(path)} | {result["id"]: result for result in results}
    path.write_text(json.dumps([kept[name] for name in sorted(kept, key=_place)], indent=1) + "\n")


def _place(name: str) -> tuple[int, str]:
    """A case's place in the table: the order in which they run."""
    return list(CASES).index(name) if name in CASES else len(CASES), name


def _read(path: Path) -> list[Result]:
    return json.loads(path.read_text()) if path.is_file() else []


def figures(result: Result) -> str:
    """Counts, measurements and notes of a case in one line."""
    parts = [f"{name} {count:,}" for name, count in sorted(result["counts"].items())]
    for name, figure in sorted(result["figures"].items()):
        numbers = ", ".join(f"{key} {_number(figure[key])}" for key in ("p50", "p95", "max"))
        parts.append(f"{name} {numbers} {figure['unit']}")
    parts += [f"{name} {text}" for name, text in result["notes"].items()]
    return "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 else "0"


def _cells(result: Result) -> list[str]:
    if "not_run" in result:
        return [result["id"], result["what"], "-", "-", "-", f"not run: {result['not_run']}", "-"]
    seconds = f"{result['seconds']:.0f} s"
    run = f"{result['run']:,}"
    return [
        result["id"],
        result["what"],
        f"{result['asked']:,} {result['unit']}",
        run,
        str(result["failed"]),
        figures(result),
        seconds,
    ]


def plain(results: Sequence[Result]) -> str:
    """For a terminal: a line a case, its figures below."""
    lines = [f"{'id':3} {'asked':>10} {'run':>9} {'failed':>6} {'time':>7}  what"]
    for result in results:
        name, what, asked, run, failed, text, seconds = _cells(result)
        lines.append(f"{name:3} {asked.split()[0]:>10} {run:>9} {failed:>6} {seconds:>7}  {what}")
        lines += [f"    {text}"] if text else []
    return "\n".join(lines)


def markdown(results: Sequence[Result]) -> str:
    """For the document."""
    rows = ["| id | what | passes where | asked | run | failed | figures | time |", "|---|---|---|---|---|---|---|---|"]
    for result in results:
        name, what, *rest = _cells(result)
        rows.append(f"| {' | '.join([name, what, result['passes'], *rest])} |")
    return "\n".join([*rows, "", *_provenance(results)])


def _provenance(results: Sequence[Result]) -> list[str]:
    """Where the figures come from: seed, commit and machine of each case, those alike together."""
    found: dict[str, list[str]] = {}
    for result in results:
        if "machine" in result:
            of = result["machine"]
            parts = ", ".join(f"{name} {of[name]}" for name in ("python", "torch", "torchserve", "diffusers"))
            text = f"seed {result['seed']}, commit {of['commit']}, {of['date']}, {of['cores']} cores, {parts}"
            found.setdefault(text, []).append(result["id"])
    return [f"{', '.join(ids)}: {text}." for text, ids in found.items()]


def document() -> str:
    """docs/reliability.md with the table of what is on record."""
    text = DOCUMENT.read_text()
    pattern = re.escape(_BEGIN) + ".*?" + re.escape(_END)
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{DOCUMENT.name} has no place for the results")
    results = _read(RESULTS / REPORT)
    body = markdown(results) if results else "No whole run is on record yet."
    return re.sub(pattern, lambda _: f"{_BEGIN}\n\n{body}\n\n{_END}", text, flags=re.DOTALL)


def write_document() -> None:
    """Bring docs/reliability.md up to date."""
    DOCUMENT.write_text(document())
