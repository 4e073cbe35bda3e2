"""The soak's results as tables: for a terminal, and for docs/reliability.md from soak/results/report.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
REPORT = "report.json"
Result = dict[str, Any]


def order(name: str) -> tuple[int, str]:
    """The place of a case: load, faults, fuzz, security, network."""
    return "LFZSN".find(name[0]), name


def keep(result: Result, folder: Path) -> None:
    """Put a case on record, in place of an older run of it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {each["id"]: each for each in read(folder)} | {result["id"]: result}
    (folder / REPORT).write_text(json.dumps([kept[name] for name in sorted(kept, key=order)], indent=1) + "\n")


def read(folder: Path = RESULTS) -> list[Result]:
    """What is on record."""
    path = folder / REPORT
    return json.loads(path.read_text()) if path.is_file() else []


def _figures(result: Result) -> str:
    """Counts, measurements and notes of a case in one line."""
    parts = [f"{name} {count:,}" for name, count in sorted(result["counts"].items())]
    for name, figure in sorted(result["figures"].items()):
        numbers = ", ".join(f"{key} {_number(figure[key])}" for key in ("p50", "p95", "max"))
        parts.append(f"{name} {numbers} {figure['unit']}")
    parts += [f"{name} {text}" for name, text in result["notes"].items()]
    return "; ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 else "0"


def plain(results: Sequence[Result]) -> str:
    """For a terminal: a line for each case, its figures below."""
    lines = [f"{'id':3} {'asked':>10} {'run':>9} {'failed':>6} {'time':>7}  what"]
    for each in results:
        counts = f"{each['asked']:>10,} {each['run']:>9,} {each['failed']:>6} {each['seconds']:>5.0f} s"
        lines.append(f"{each['id']:3} {counts}  {each['what']}")
        lines += [f"    {text}"] if (text := _figures(each)) else []
    return "\n".join(lines)


def markdown(results: Sequence[Result]) -> str:
    """For the document, with the seed, commit and machine of each case."""
    rows = ["| id | what | passes where | asked | run | failed | figures | time |", "|---|---|---|---|---|---|---|---|"]
    origins: dict[str, list[str]] = {}
    for each in results:
        asked, seconds = f"{each['asked']:,} {each['unit']}", f"{each['seconds']:.0f} s"
        cells = [each["id"], each["what"], each["passes"], asked, f"{each['run']:,}", str(each["failed"])]
        rows.append(f"| {' | '.join([*cells, _figures(each), seconds])} |")
        machine = each["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        origin = (
            f"seed {each['seed']}, commit {machine['commit']}, {machine['date']}, {machine['cores']} cores, {versions}"
        )
        origins.setdefault(origin, []).append(each["id"])
    return "\n".join([*rows, "", *(f"{', '.join(names)}: {origin}." for origin, names in origins.items())])
