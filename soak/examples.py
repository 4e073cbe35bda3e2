"""Hypothesis with a seed."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis.strategies import SearchStrategy

CORES = len(os.sched_getaffinity(0))


def examine(strategy: "SearchStrategy[Any]", check: Callable[[Any], None], examples: int, seed: int) -> None:
    """Check so many examples of a strategy; the same seed draws the same ones.

    Raises:
        AssertionError: with the smallest input that was found to fail, and where.
    """
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(strategy)(check)))()
    except Exception as error:  # of any kind: not all can be sent to another process
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = "".join(traceback.format_exception_only(error)).strip()
        raise AssertionError(f"{Path(where.filename).name}, line {where.lineno}: {found}") from None
