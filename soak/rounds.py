"""A case is a test of many rounds, which pytest would report as one: they are counted and measured here.

All chance in a round follows from the soak's seed, the case and the round's number. A round that failed can be run
again by itself: `make soak CASES=F5 SEED=7 ROUND=3`.
"""

import functools
import random
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MOST_FAILURES = 20
"""A case ends after so many: further ones add nothing."""
_PROGRESS_SECONDS = 15.0
_INTERRUPT_SECONDS = 0.5
"""Ctrl-C reaches the processes that a round has started before this process notices it."""
_LONGEST = 4000
"""Characters of an error, and of its traceback, that are kept."""
_FAILURES = (Exception, pytest.fail.Exception)
"""The latter, of `pytest.raises`, is no Exception."""
Work = Callable[["Round"], None]


@dataclass(frozen=True)
class Case:
    """One line of the table in docs/reliability.md.

    Attributes:
        what: is done, in a few words.
        passes: in which case it passes.
        count: rounds of the whole case.
        short: rounds in `make test`; 0 if even one takes too long.
        unit: what a round is, in the plural.
    """

    id: str
    what: str
    passes: str
    count: int
    short: int
    unit: str = "rounds"


def case(name: str, count: int, short: int, unit: str = "rounds") -> Callable[[Callable[..., None]], Any]:
    """Make a test function a case. Its first argument is the case's rounds, the others are fixtures; its docstring has
    two paragraphs, what is done and when the case passes.
    """

    def mark(test: Callable[..., None]) -> Any:
        what, passes = (" ".join(part.split()).rstrip(".") for part in (test.__doc__ or "").split("\n\n"))

        @functools.wraps(test)
        def carry_out(rounds: "Rounds", **fixtures: Any) -> None:
            rounds.carry_out(functools.partial(test, rounds, **fixtures))

        return pytest.mark.slow(pytest.mark.soak(Case(name, what, passes, count, short, unit))(carry_out))

    return mark


@dataclass(frozen=True)
class Round:
    """One round, with its only source of chance and a folder that is removed after it."""

    number: int
    seed: str
    draw: random.Random = field(repr=False)
    folder: Path = field(repr=False)
    rounds: "Rounds" = field(repr=False)


@dataclass
class Rounds:
    """Counts, figures and failures of a case; any thread may call the methods.

    Args:
        seed: of the soak.
        numbers: of the rounds to run.
        folder: for what the case writes.
        is_timed: whether `limit` judges. In `make test` it does not: a busy machine is no defect.
    """

    case: Case
    seed: int
    numbers: range
    folder: Path
    is_timed: bool = True
    run: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By figure and unit."""
    notes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._interrupted = threading.Event()
        self._began = self._told_at = time.monotonic()

    @property
    def is_whole(self) -> bool:
        """Whether all rounds of the case were run and judged, or ended early by failures."""
        is_all = self.is_timed and len(self.numbers) == self.case.count
        return is_all and not self._interrupted.is_set() and (self.run == self.case.count or bool(self.failures))

    def carry_out(self, test: Callable[[], None]) -> None:
        """Run the case. An exception that ends it early is one more failure.

        Raises:
            pytest.fail.Exception: with all failures.
        """
        self._print_progress("begins")
        try:
            test()
            if self.run != len(self.numbers) and not self.failures:
                self.fail(f"{self.run} of {len(self.numbers)} {self.case.unit} were run")
        except _FAILURES as error:
            self.fail(_described(error))
        finally:
            self.seconds = round(time.monotonic() - self._began, 1)
            self._print_progress("ends")
        if self.failures:
            pytest.fail("\n".join(f"{each['what']}\n  again: {each['again']}" for each in self.failures), pytrace=False)

    def do(self, work: Work, threads: int = 1) -> None:
        """Do all rounds, so many at once."""
        self.do_in(lambda: nullcontext(work), threads, self.numbers)

    def do_in(self, begin: Callable[[], AbstractContextManager[Work]], threads: int, numbers: Sequence[int]) -> None:
        """Do these rounds in so many threads, each in a context that lasts for all of its rounds, e.g. of a server."""
        left = iter(numbers)

        def following() -> int | None:
            with self._lock:
                if len(self.failures) >= MOST_FAILURES:
                    self.notes["ended early"] = f"after {MOST_FAILURES} failures"
                    return None
                return None if self._interrupted.is_set() else next(left, None)

        def drain() -> None:
            if (number := following()) is None:
                return
            with begin() as work:
                while number is not None:
                    self._do_one(work, number)
                    number = following()

        with ThreadPoolExecutor(threads) as pool:
            try:
                for ended in [pool.submit(drain) for _ in range(threads)]:
                    ended.result()
            except KeyboardInterrupt:
                self._interrupted.set()
                print("interrupted: the rounds under way end first; once more ends them at once", file=sys.stderr)
                raise

    def _do_one(self, work: Work, number: int) -> None:
        seed, folder = f"{self.seed}/{self.case.id}/{number}", self.folder / f"round{number}"
        folder.mkdir()
        try:
            work(Round(number, seed, random.Random(seed), folder, self))
        except _FAILURES as error:
            if self._interrupted.wait(_INTERRUPT_SECONDS):
                return
            self.fail(_described(error), number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self.run += 1
            if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
                self._print_progress()

    def fail(self, what: str, number: int | None = None) -> None:
        """Note and print a failure: of a round, or of the case as a whole."""
        again = f"make soak CASES={self.case.id} SEED={self.seed}" + ("" if number is None else f" ROUND={number}")
        place = "" if number is None else f" in round {number}"
        with self._lock:
            self.failures.append({"round": number, "what": what, "again": again})
        print(f"{self.case.id} FAILED{place}: {what}\n  again: {again}", file=sys.stderr, flush=True)

    def count(self, name: str, by: int = 1) -> None:
        """Count something that the table shows."""
        with self._lock:
            self.counts[name] += by

    def measure(self, name: str, value: float, unit: str = "s") -> None:
        """Add a sample of a figure; the table shows median, 95th percentile and maximum."""
        with self._lock:
            self.samples.setdefault((name, unit), []).append(value)

    def limit(self, name: str, percentile: int, below: float, unit: str = "s") -> None:
        """Fail the case unless so many percent of a figure's samples lie below a bound; a whole case must have some."""
        samples = self.samples.get((name, unit), [])
        if not self.is_timed or (not samples and self.run < self.case.count):
            return
        if not samples:
            self.fail(f"{name}: nothing was measured")
        elif not (found := _percentile(samples, percentile)) < below:
            self.fail(f"{name}: p{percentile} is {found:.3g}, not below {below:g} {unit}")

    def _print_progress(self, text: str = "") -> None:
        now = self._told_at = time.monotonic()
        only = f"round {self.numbers[0]} only: " if self.numbers[0] else ""
        done = f"{only}{self.run:,} of {len(self.numbers):,} {self.case.unit}, {len(self.failures)} failed"
        print(f"{self.case.id}  {now - self._began:5.0f} s  {done}  {text}".rstrip(), file=sys.stderr, flush=True)

    def result(self) -> dict[str, Any]:
        """What is kept of it."""
        case = {name: getattr(self.case, name) for name in ("id", "what", "passes", "unit")}
        numbers = {"seed": self.seed, "asked": len(self.numbers), "run": self.run, "failed": len(self.failures)}
        figures = {
            name: {"unit": unit, "samples": len(samples), "max": max(samples)}
            | {f"p{percent}": _percentile(samples, percent) for percent in (50, 95)}
            for (name, unit), samples in self.samples.items()
        }
        kept = {name: getattr(self, name) for name in ("failures", "counts", "notes", "seconds")}
        return case | numbers | kept | {"figures": figures}


def _percentile(samples: Sequence[float], percent: int) -> float:
    """By nearest rank."""
    return sorted(samples)[max(0, -(-percent * len(samples) // 100) - 1)]


def _described(error: BaseException) -> str:
    """The error, and the end of its traceback, which may hold nothing but what Hypothesis adds to an error."""
    whole = "".join(traceback.format_exception(error)).strip()
    return f"{type(error).__name__}: {str(error)[:_LONGEST]}\n{whole[-_LONGEST:]}"
