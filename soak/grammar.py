"""Z1: everything that is read from others, by hypothesis: it is read right, or refused with an error of our own.

Inputs are made nearly right (soak/inputs.py); what must hold of each is in soak/readers.py. A seed repeats a round to
the letter.
"""

import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis

from soak.case import Case, Wrong
from soak.lane import on_each_core
from soak.readers import Reader, readers
from soak.report import Report

ROUND = 500
"""Examples of one seed."""
_SHORT_ROUND = 100


def examine(reader: Reader, examples: int, seed: int) -> Counter[str]:
    """How many inputs were taken and refused; the first one that breaks a promise is an exception."""
    seen: Counter[str] = Counter()

    def check(value: Any) -> None:
        seen["taken" if reader.check(value) else "refused"] += 1

    test = hypothesis.given(reader.inputs)(check)
    # fmt: off
    test = hypothesis.settings(
        max_examples=examples, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )(test)
    # fmt: on
    try:
        hypothesis.seed(seed)(test)()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = "".join(traceback.format_exception_only(error)).strip()  # with the smallest input that does it
        raise Wrong(f"{reader.name}: {Path(where.filename).name}, line {where.lineno}: {found}") from None
    assert seen.total() >= examples, f"{reader.name}: {seen.total()} inputs, not {examples}"
    return seen


def _examined(number: int, seed: int, examples: int) -> tuple[str, Counter[str]]:
    """One round, in a process of its own: it has one core."""
    with tempfile.TemporaryDirectory() as folder:
        seven = readers(Path(folder))
        reader = seven[number % len(seven)]
        return reader.name, examine(reader, examples, seed)


def _run(report: Report) -> None:
    with on_each_core() as pool:
        examples = ROUND if report.timed else _SHORT_ROUND
        running = [
            (each, pool.submit(_examined, each.number, each.draw.randrange(2**32), examples))
            for each in report.rounds()
        ]
        for each, future in running:
            with each:
                name, seen = future.result()
                report.count_of("examples", seen.total())
                for outcome, count in sorted(seen.items()):
                    report.count_of(f"{name} {outcome}", count)


CASE = Case(
    "Z1",
    "hypothesis on all that is read from others: scene files, ids, parameters, answers, manifests, bodies, events",
    "read right, or refused with an error of our own that names the place",
    count=7 * 20_000 // ROUND,
    short=7,
    run=_run,
    unit=f"rounds of {ROUND} examples",
)
