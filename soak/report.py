"""How a run of a case is counted, measured and reported.

A case is a number of rounds. Each round draws all its chance from a seed of its own, which follows from the suite's
seed, the case and the round's number: any round that failed is run again, alone, by the command that is printed.
"""

import random
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from soak.case import Case, Wrong
from soak.lane import Lane, Work, every

if TYPE_CHECKING:
    from soak.servers import Served

MOST_FAILURES = 20
"""A case with so many ends: one more tells nothing new."""
_PROGRESS_SECONDS = 15.0
_INTERRUPT_SECONDS = 0.5
"""A Ctrl-C reaches the processes that a round has started before it is noticed here."""
_LONGEST = 4000
"""Characters of an error, and of its traceback, that are kept."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, and in which round; None: in the case as a whole."""

    round: int | None
    what: str


@dataclass
class Round:
    """One round, as a context: whatever is raised in it is its failure, and the next round runs."""

    number: int
    seed: str
    report: "Report"
    draw: random.Random = field(init=False)
    """The only source of chance in a round."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    @property
    def folder(self) -> Path:
        """For what the round writes; removed after it."""
        return self.report.folder / f"round{self.number}"

    def __enter__(self) -> "Round":
        self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        shutil.rmtree(self.folder, ignore_errors=True)
        if error is not None and not isinstance(error, Exception):
            return False  # Ctrl-C ends the suite
        self.report.finished(self, error)
        return True


@dataclass
class Report:
    """Counts, figures and failures of one case as it runs; its methods may be called from any thread.

    Attributes:
        timed: whether `limit` judges. In `make test` it does not: a busy machine is no defect.
        folder: for what the case writes; removed afterwards.
        running: a server that cases share, as `served` makes it; None: a case that needs one starts its own.
    """

    case: Case
    seed: int
    count: int
    folder: Path
    timed: bool = True
    only: int | None = None
    """The one round to run, where one is."""
    running: "Served | None" = None
    out: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self._interrupted = threading.Event()
        self.run = 0
        self.failures: list[Failure] = []
        self.counts: Counter[str] = Counter()
        self.notes: dict[str, str] = {}
        self._samples: dict[str, tuple[str, list[float]]] = {}
        self._lock = threading.Lock()
        self._began = self._told_at = time.monotonic()

    @contextmanager
    def server(self) -> "Iterator[Served]":
        """A real server with the tiny models, short queues and short time-outs: soak/servers.py."""
        from soak.servers import served

        with nullcontext(self.running) if self.running else served(self.folder) as running:
            yield running

    @property
    def asked(self) -> int:
        """Rounds to run."""
        return self.count if self.only is None else 1

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended it."""
        return self._interrupted.is_set()

    def rounds(self, takes: Callable[[int], bool] = every) -> Iterator[Round]:
        """The rounds to run, in order."""
        for number in range(self.count) if self.only is None else (self.only,):
            if len(self.failures) >= MOST_FAILURES:
                self.note("ended early", f"after {MOST_FAILURES} failures")
                return
            if self._interrupted.is_set():
                return
            if takes(number):
                yield Round(number, f"{self.seed}/{self.case.id}/{number}", self)

    def share(self, lanes: Sequence[Lane]) -> None:
        """Do all rounds in these lanes; those that take the same rounds share them."""
        lock = threading.Lock()
        rounds = {lane.takes: self.rounds(lane.takes) for lane in lanes}

        def following(lane: Lane) -> Round | None:
            with lock:
                return next(rounds[lane.takes], None)

        def drain(lane: Lane) -> None:
            each = following(lane)
            if each is None:
                return  # before it begins what nobody needs
            with lane.begin() as work:
                while each is not None:
                    with each:
                        work(each)
                    each = following(lane)

        with ThreadPoolExecutor(max(1, len(lanes))) as pool:
            try:
                for ended in [pool.submit(drain, lane) for lane in lanes]:
                    ended.result()
            except KeyboardInterrupt:
                self.interrupt()
                raise

    def spread(self, work: Work, threads: int) -> None:
        """Do all rounds, so many at once."""
        self.share([Lane(lambda: nullcontext(work))] * threads)

    def interrupt(self) -> None:
        """Begin no more rounds; what fails from now on was interrupted too."""
        if not self._interrupted.is_set():
            print("interrupted: what is under way ends first; once more ends it at once", file=self.out, flush=True)
        self._interrupted.set()

    def finished(self, each: Round, error: Exception | None) -> None:
        """Count a round."""
        if error is not None and self._interrupted.wait(_INTERRUPT_SECONDS):
            return
        with self._lock:
            self.run += 1
        if error is not None:
            said = str(error) if isinstance(error, Wrong) else _said(error)
            self.fail(said, each.number)
        self.progress()

    def fail(self, what: str, number: int | None = None) -> None:
        """Note a failure: of a round, or of the case as a whole."""
        with self._lock:
            self.failures.append(Failure(number, what))
        again = self.command(number)
        print(
            f"{self.case.id} FAILED{'' if number is None else f' in round {number}'}: {what}\n  again: {again}",
            file=self.out,
        )

    def command(self, number: int | None = None) -> str:
        """The command that runs a round, or the case, again."""
        one = "" if number is None else f" --round {number}"
        return f".venv/bin/python -m soak {self.case.id} --seed {self.seed}{one}"

    def count_of(self, name: str, by: int = 1) -> None:
        """Count something that the table shows."""
        with self._lock:
            self.counts[name] += by

    def measure(self, name: str, value: float, unit: str = "s") -> None:
        """Add a sample of a figure; the table shows median, 95th percentile and maximum."""
        with self._lock:
            self._samples.setdefault(name, (unit, []))[1].append(value)

    def note(self, name: str, text: str) -> None:
        """Show a single figure."""
        with self._lock:
            self.notes[name] = text

    def limit(self, name: str, percentile: int, below: float) -> None:
        """The case fails where so many percent of a figure's samples do not lie below a bound; run whole, also where
        there are none.
        """
        found = self.percentile(name, percentile)
        if found is None:
            if self.timed and self.run >= self.case.count:
                self.fail(f"{name}: nothing was measured")
        elif self.timed and not found < below:
            self.fail(f"{name}: p{percentile} is {found:.3g}, not below {below:g} {self._samples[name][0]}")

    def percentile(self, name: str, percentile: int) -> float | None:
        """Of a figure's samples (nearest rank); None where there are none."""
        samples = sorted(self._samples.get(name, ("", []))[1])
        return samples[max(0, -(-percentile * len(samples) // 100) - 1)] if samples else None

    def progress(self, text: str = "", force: bool = False) -> None:
        """Say how far it is, every now and then."""
        now = time.monotonic()
        with self._lock:
            if not force and now - self._told_at < _PROGRESS_SECONDS:
                return
            self._told_at = now
        done = f"{self.run:,} of {self.asked:,} {self.case.unit}, {len(self.failures)} failed"
        if self.only is not None:
            done = f"round {self.only} alone: {done}"
        print(
            f"{self.case.id}  {now - self._began:5.0f} s  {done}{'  ' + text if text else ''}",
            file=self.out,
            flush=True,
        )

    def result(self) -> dict[str, Any]:
        """What is kept of it."""
        figures = {
            name: {
                "unit": unit, "samples": len(samples), "p50": self.percentile(name, 50),
                "p95": self.percentile(name, 95), "max": max(samples),
            }
            for name, (unit, samples) in self._samples.items()
        }  # fmt: skip
        return {
            "seed": self.seed,
            "asked": self.asked,
            "run": self.run,
            "failed": len(self.failures),
            "failures": [
                {"round": each.round, "what": each.what, "again": self.command(each.round)} for each in self.failures
            ],
            "counts": dict(self.counts),
            "figures": figures,
            "notes": self.notes,
            "seconds": round(time.monotonic() - self._began, 1),
        }


def _said(error: Exception) -> str:
    """The error, and the end of its traceback, which may hold nothing but what Hypothesis adds to an error."""
    whole = "".join(traceback.format_exception(error)).strip()
    return f"{type(error).__name__}: {str(error)[:_LONGEST]}\n{whole[-_LONGEST:]}"


def carry_out(case: Case, seed: int, count: int, folder: Path, **options: Any) -> Report:
    """Run a case; what ends it early is its failure, but for Ctrl-C or SIGTERM."""
    report = Report(case, seed, count, folder, **options)
    report.progress("begins", force=True)
    try:
        case.run(report)
    except KeyboardInterrupt:
        report.interrupt()
    except Exception as error:
        report.fail(_said(error))
    if report.run != report.asked and not report.failures and not report.interrupted:
        report.fail(f"{report.run} of {report.asked} {case.unit} were run")
    report.progress("ends", force=True)
    return report
