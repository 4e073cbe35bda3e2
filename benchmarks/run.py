"""Measures the figures R1 to R9: `python benchmarks/run.py [R1 R2 ...] [--smoke] [--name NAME]`.

Each figure's samples go to `benchmarks/results/NAME/R1.json`, its plot beside them, as soon as it is measured; at the
end there is one table. `--smoke` does everything at the smallest sizes, checks what is made, and keeps nothing.
"""

import argparse
import importlib
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import figures
import machine
import plots
from figures import Figure
from stand import Stand

MODULES = {
    "R1": "serving",
    "R2": "pipelining",
    "R3": "batching",
    "R4": "workers",
    "R5": "transport",
    "R6": "cold_start",
    "R7": "client_alone",
    "R8": "weight_sharing",
    "R9": "against_peers",
}


def main() -> int:
    """Measure, keep, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the figures R1 to R9.")
    parser.add_argument("figures", nargs="*", metavar="R1", help="default: all of them")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes: are the outputs right?")
    parser.add_argument("--name", default=f"{datetime.now():%Y-%m-%d-%H%M%S}", help="of the run; default: the time")
    parser.add_argument("--output", type=Path, default=figures.RESULTS, help="where the run's folder goes")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(MODULES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    began = time.perf_counter()

    def told(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    stand = Stand(Path(tempfile.mkdtemp(prefix="cloudvid-bench-")), options.smoke, told)
    measured: list[Figure] = []
    try:
        facts = machine.describe()
        for number in options.figures or MODULES:
            module = importlib.import_module(MODULES[number])
            told(" ".join((module.__doc__ or "").partition(".")[0].split()))
            figure = module.measure(stand)
            measured.append(figure)
            path = figures.save(figure, facts, stand.folder if options.smoke else options.output / options.name)
            plots.draw(figure, path.with_suffix(".svg"))
    finally:
        stand.close()
    print(f"{len(measured)} figures measured right" if options.smoke else figures.table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
