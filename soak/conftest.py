"""The soak as pytest runs it: which cases and rounds, their servers, and what is kept of them.

`pytest soak` runs a short cut of each case, as `make test` does; `pytest soak --soak` (`make soak`) runs whole cases,
whose limits judge.
"""

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from soak import table
from soak.rounds import Case, Rounds, Work
from soak.servers import Served, served
from support import prepare_process
from support.machine import describe

prepare_process()
_SHORT_SEED = 20261123
_RAN = pytest.StashKey[list[Rounds]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make soak`."""
    group = parser.getgroup("soak", "load, faults and fuzz")
    group.addoption("--soak", action="store_true", help="whole cases; default: a short cut of each")
    group.addoption("--case", action="append", default=[], type=str.upper, help="only this one; may be repeated")
    group.addoption("--count", type=int, help="so many rounds of each; default: all")
    group.addoption("--round", type=int, help="only this round, of one case")
    group.addoption("--seed", type=int, help="default: a new one, which is printed")
    group.addoption("--output", type=Path, default=table.RESULTS, help="folder of report.json (default: soak/results)")


def pytest_configure(config: pytest.Config) -> None:
    """Draw a seed; have SIGTERM end the soak as Ctrl-C does, except that the processes of a round do not get it."""
    config.stash[_RAN] = []
    options = config.option
    if options.soak:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**9) if options.soak else _SHORT_SEED


def pytest_report_header(config: pytest.Config) -> str:
    """Everything that is drawn follows from it."""
    return f"seed {config.option.seed}"


def _case_of(item: pytest.Item) -> Case | None:
    marker = item.get_closest_marker("soak")
    return marker.args[0] if marker else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the cases that were asked for, in the order of the table."""
    options, case_of = config.option, {item: _case_of(item) for item in items}
    if problem := _problem(options, {case.id: case for case in case_of.values() if case}):
        raise pytest.UsageError(problem)

    def is_wanted(case: Case | None) -> bool:
        if case is None:
            return not options.case
        return (case.id in options.case or not options.case) and bool(options.soak or case.short)

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(case_of[item])])
    items[:] = [item for item in items if is_wanted(case_of[item])]
    items.sort(key=lambda item: table.order(case.id) if (case := case_of[item]) else (-1, ""))


def _problem(options: Any, cases: dict[str, Case]) -> str | None:
    """What is wrong with the options."""
    if unknown := sorted(set(options.case) - set(cases)):
        return f"there is no case {unknown[0]}: they are {', '.join(sorted(cases, key=table.order))}"
    if options.count is not None and options.count < 1:
        return f"--count: must be at least 1, got {options.count}"
    if options.round is None:
        return None
    if len(options.case) != 1 or options.count is not None:
        return "--round: needs one --case, and no --count"
    (name,), most = options.case, cases[options.case[0]].count - 1
    return (
        None if 0 <= options.round <= most else f"--round: must be 0 to {most}, which {name} has, got {options.round}"
    )


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """As the soak begins: what is committed meanwhile does not run."""
    return describe("torch", "torchserve", "diffusers")


@pytest.fixture
def rounds(request: pytest.FixtureRequest, tmp_path: Path, machine: dict[str, Any]) -> Iterator[Rounds]:
    """The rounds of a case; a whole case is put on record."""
    options, case = request.config.option, _case_of(request.node)
    assert case is not None
    numbers = range(options.count or (case.count if options.soak else case.short))
    if options.round is not None:
        numbers = range(options.round, options.round + 1)
    rounds = Rounds(case, options.seed, numbers, tmp_path, is_timed=options.soak)
    request.config.stash[_RAN].append(rounds)
    yield rounds
    shutil.rmtree(tmp_path, ignore_errors=True)
    if rounds.is_whole:
        table.keep(rounds.result() | {"machine": machine}, options.output)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of what was run."""
    ran = config.stash[_RAN]
    if config.option.soak and ran:
        terminalreporter.section("soak")
        terminalreporter.write_line(table.plain([each.result() for each in ran]))
        if whole := [each.case.id for each in ran if each.is_whole]:
            terminalreporter.write_line(f"on record in {config.option.output / table.REPORT}: {', '.join(whole)}")
            terminalreporter.write_line("python docs/generate.py brings docs/reliability.md up to date")


@pytest.fixture(scope="session")
def short_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all short cuts, where noise is made: it takes longer to start than they do."""
    with served(tmp_path_factory.mktemp("served"), make_noise=True) as running:
        yield running


@pytest.fixture
def server(rounds: Rounds, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server with the tiny models, short queues and short time-outs."""
    if not rounds.is_timed:
        yield request.getfixturevalue("short_server")
        return
    with served(rounds.folder / "server") as running:
        yield running


@pytest.fixture
def do_on_servers(rounds: Rounds, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Does all rounds: every fifth on servers with the tiny models, then the others on servers that make noise.

    The former load a core for seconds as they start: none of the latter is timed beside them.
    """

    def do(begin: Callable[[Served], Work], tiny: int = 1, noise: int = 2) -> None:
        """Have each of so many servers do rounds; `begin` makes the work of a server that has just started."""
        if not rounds.is_timed:
            rounds.do(begin(request.getfixturevalue("short_server")))
            return

        @contextmanager
        def started(make_noise: bool) -> Iterator[Work]:
            with served(Path(mkdtemp(dir=rounds.folder)), make_noise=make_noise) as running:
                yield begin(running)

        on_tiny = [number for number in rounds.numbers if number % 5 == 0 or not noise]
        others = [number for number in rounds.numbers if number not in on_tiny]
        rounds.do_in(lambda: started(False), tiny, on_tiny)
        rounds.do_in(lambda: started(True), max(1, noise), others)

    return do
