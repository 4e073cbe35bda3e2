"""`python -m soak [ID ...]`: the long suite, or cases of it.

Everything that is drawn follows from the seed, which is printed; a round that failed is run again, alone, by
`python -m soak ID --seed N --round K`. Whole runs of a case go to soak/results, and from there to docs/reliability.md.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from soak import ROOT, cases, table
from soak.case import Case, carry_out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description="Load, faults and fuzz against CloudVid.")
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"default: all of {', '.join(cases.CASES)}")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--round", type=int, help="run this round alone")
    parser.add_argument("--short", action="store_true", help="as few rounds as `make test` runs")
    parser.add_argument("--count", type=int, help="so many rounds")
    parser.add_argument("--output", type=Path, default=table.RESULTS, help="folder of report.json")
    options = parser.parse_args()
    options.ids = [name.upper() for name in options.ids] or list(cases.CASES)
    if unknown := sorted(set(options.ids) - set(cases.CASES)):
        parser.error(f"there is no case {unknown[0]}")
    return options


def _machine() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    dirty = "+" if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!soak/results", ":!docs") else ""
    return {
        "commit": (git("rev-parse", "--short=10", "HEAD") or "unknown") + dirty,
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchserve", "diffusers")},
    }


def _run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    described = {"id": case.id, "what": case.what, "passes": case.passes, "unit": case.unit}
    if obstacle := case.obstacle():
        print(f"{case.id}  not run: {obstacle}", file=sys.stderr)
        return described | {"not_run": obstacle}
    count = options.count or (case.short if options.short else case.count)
    if options.round is not None:
        count = max(count, options.round + 1)
    with tempfile.TemporaryDirectory(prefix=f"soak-{case.id}-") as folder:
        whole = options.round is None and count == case.count
        report = carry_out(case, options.seed, count, Path(folder), only=options.round, timed=not options.short)
    return described | report.result() | {"whole": whole, "machine": _machine()}


def main() -> int:
    """Run the cases; 0 where all that was run passed."""
    options = _arguments()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**9)
    print(f"seed {options.seed}", flush=True)
    results = []
    try:
        for name in options.ids:
            results.append(_run(cases.CASES[name], options))
            table.keep([result for result in results[-1:] if result.get("whole")], options.output)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        print(table.plain(results), flush=True)
    if options.output == table.RESULTS and any(result.get("whole") for result in results):
        table.write_document()
    for failure in (failure for result in results for failure in result.get("failures", ())):
        print(json.dumps(failure))
    return 1 if any(result.get("failed") for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
