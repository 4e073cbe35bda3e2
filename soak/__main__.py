"""`python -m soak [ID ...]`: the long suite, or cases of it.

Everything that is drawn follows from the seed, which is printed; a round that failed is run again, alone, by
`python -m soak ID --seed N --round K`. Whole runs of a case go to soak/results, and from there to docs/reliability.md.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from soak import ROOT, cases, table
from soak.case import Case
from soak.report import carry_out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description="Load, faults and fuzz against CloudVid.",
        epilog="\n".join(f"{case.id}  {case.count:3} {case.unit}: {case.what}" for case in cases.CASES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="a case; default: all of those below")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--round", type=int, help="run this round of one case alone")
    which.add_argument("--short", action="store_true", help="as few rounds as `make test` runs")
    which.add_argument("--count", type=int, help="so many rounds; default: all")
    parser.add_argument(
        "--output", type=Path, default=table.RESULTS,
        help="folder of report.json, which keeps whole runs alone (default: soak/results, for docs/reliability.md)",
    )  # fmt: skip
    options = parser.parse_args()
    named = {name.upper(): name for name in options.ids} or dict.fromkeys(cases.CASES)
    options.ids = list(named)
    if unknown := sorted(set(named) - set(cases.CASES)):
        parser.error(f"there is no case {named[unknown[0]]}: they are {', '.join(cases.CASES)}")
    if options.count is not None and options.count < 1:
        parser.error(f"--count: must be at least 1, got {options.count}")
    if options.round is not None:
        if len(options.ids) != 1:
            parser.error("--round: must be of one case, name it")
        count = cases.CASES[options.ids[0]].count
        if not 0 <= options.round < count:
            parser.error(f"--round: must be 0 to {count - 1}, which {options.ids[0]} has, got {options.round}")
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


def _run(case: Case, options: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    described = {"id": case.id, "what": case.what, "passes": case.passes, "unit": case.unit}
    if obstacle := case.obstacle():
        print(f"{case.id}  not run: {obstacle}", file=sys.stderr)
        return described | {"not_run": obstacle}
    count = options.count or (case.short if options.short else case.count)
    with tempfile.TemporaryDirectory(prefix=f"soak-{case.id}-") as folder:
        report = carry_out(case, options.seed, count, Path(folder), only=options.round, timed=not options.short)
    whole = options.round is None and not options.short and count == case.count and not report.interrupted
    return described | report.result() | {"whole": whole, "interrupted": report.interrupted, "machine": machine}


def main() -> int:
    """Run the cases; 0 where all that was run passed."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, but a round's processes do not get it
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**9)
    print(f"seed {options.seed}", flush=True)
    machine = _machine()  # what is committed meanwhile does not run
    results: list[dict[str, Any]] = []
    for name in options.ids:
        results.append(_run(cases.CASES[name], options, machine))
        table.keep([result for result in results[-1:] if result.get("whole")], options.output)
        if is_interrupted := results[-1].get("interrupted", False):
            break
    print(table.plain(results), flush=True)
    if any(result.get("whole") for result in results):
        print(f"on record in {options.output / table.REPORT}")
        if options.output == table.RESULTS:
            table.write_document()
            print(f"and in {table.DOCUMENT}")
    for failure in (failure for result in results for failure in result.get("failures", ())):
        print(json.dumps(failure))
    if is_interrupted:
        return 130
    return 1 if any(result.get("failed") for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
