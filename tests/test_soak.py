"""A short cut of each case of the long suite, `python -m soak`; and the suite itself."""

import json
import signal
import sys
import threading

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from soak import table
from soak.__main__ import main
from soak.case import Case, Wrong, check
from soak.cases import CASES
from soak.report import carry_out
from soak.servers import served

SEED = 20261123
ON_A_SERVER = ("L1", "L2", "F1", "F2", "F3", "Z4")
IN_THE_SOAK_ALONE = ("F4",)
"""A minute at least: the server has to give a model up."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One server for the cases that need one, where noise is made: it costs more than their short cuts."""
    with served(tmp_path_factory.mktemp("served"), make_noise=True) as running:
        yield running


def short_cut(case, folder, running=None):
    """Nothing timed is judged: a busy machine is no defect."""
    report = carry_out(case, SEED, case.short, folder, timed=False, running=running)
    assert not report.failures
    assert report.run == case.short


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_SERVER)
def test_a_short_cut_on_a_real_server(name, running, tmp_path):
    short_cut(CASES[name], tmp_path, running)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ON_A_SERVER + IN_THE_SOAK_ALONE])
def test_a_short_cut(name, tmp_path):
    case = CASES[name]
    if obstacle := case.obstacle():
        pytest.skip(obstacle)
    short_cut(case, tmp_path)


def toy(report):
    for each in report.rounds():
        with each:
            drawn = each.draw.randrange(100)
            report.measure("drawn", drawn, "points")
            check(each.number != 3, f"drew {drawn}")
    report.limit("drawn", 50, 0.0)


TOY = Case("T0", "a toy", "never", 10, 5, toy)


def test_a_failed_round_is_reported_with_the_command_that_runs_it_alone_and_draws_the_same(tmp_path, capsys):
    whole = carry_out(TOY, 7, 10, tmp_path, timed=False)
    assert (whole.run, [failure.round for failure in whole.failures]) == (10, [3])
    assert "again: .venv/bin/python -m soak T0 --seed 7 --round 3" in capsys.readouterr().err
    alone = carry_out(TOY, 7, 10, tmp_path, timed=False, only=3)
    assert alone.failures == whole.failures
    assert alone.run == 1


def test_an_error_is_reported_however_much_is_added_to_it(tmp_path):
    def fails(report):
        for each in report.rounds():
            with each:
                error = ValueError("the error")
                error.add_note("while generating\n" + "what Hypothesis drew\n" * 999)
                raise error

    (failure,) = carry_out(Case("T5", "", "", 1, 1, fails), 7, 1, tmp_path).failures
    assert failure.what.startswith("ValueError: the error")
    assert len(failure.what) < 10_000


def test_what_is_timed_is_judged_in_the_soak_alone(tmp_path):
    judged = carry_out(TOY, 7, 3, tmp_path)
    assert [failure.what.partition(",")[0] for failure in judged.failures] == [
        f"drawn: p50 is {judged.percentile('drawn', 50):.3g}"
    ]
    assert not carry_out(TOY, 7, 3, tmp_path, timed=False).failures


def test_a_whole_case_whose_limit_has_nothing_to_judge_has_failed(tmp_path):
    def unmeasured(report):
        for each in report.rounds():
            with each:
                pass
        report.limit("refused after", 95, 0.1)

    case = Case("T3", "", "", 2, 1, unmeasured)
    assert [failure.what for failure in carry_out(case, 7, 2, tmp_path).failures] == [
        "refused after: nothing was measured"
    ]
    assert not carry_out(case, 7, 1, tmp_path).failures


def test_sigterm_ends_the_suite_as_an_interrupt_does(tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def ended(report):
        for each in report.rounds():
            with each:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("soak.cases.CASES", {name: Case(name, "", "", 9, 1, ended) for name in ("T6", "T7")})
    monkeypatch.setattr(sys, "argv", ["soak", "--seed", "7", "--output", str(tmp_path)])
    try:
        assert main() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "T7" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_case_begins_no_more_rounds_and_has_not_failed(tmp_path):
    """Its processes get the signal too, and end otherwise than they should."""
    begun = threading.Barrier(2)

    def interrupted(report):
        def work(each):
            begun.wait()
            if each.number == 0:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            raise Wrong("exit code -2")

        report.spread(work, threads=2)

    report = carry_out(Case("T4", "", "", 9, 1, interrupted), 7, 9, tmp_path)
    assert report.interrupted
    assert not report.failures
    assert report.run == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is no case nonsense"),
        (["F6", "--count", "0"], "must be at least 1, got 0"),
        (["F6", "--round", "50"], "must be 0 to 49"),
        (["--round", "1"], "must be of one case"),
        (["F6", "--round", "1", "--count", "2"], "not allowed with"),
    ],
)
def test_rounds_that_a_case_has_not_are_refused(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_case_that_raises_or_leaves_rounds_out_has_failed(tmp_path):
    def broken(report):
        raise Wrong("no server")

    assert "no server" in carry_out(Case("T1", "", "", 1, 1, broken), 7, 1, tmp_path).failures[0].what
    lazy = carry_out(Case("T2", "", "", 1, 1, lambda report: None), 7, 4, tmp_path)
    assert [failure.what for failure in lazy.failures] == ["0 of 4 rounds were run"]


def test_results_are_kept_case_by_case_and_a_case_that_was_not_run_says_why(tmp_path):
    ran = {"id": TOY.id, "what": TOY.what, "passes": TOY.passes, "unit": TOY.unit}
    ran |= carry_out(TOY, 7, 3, tmp_path, timed=False).result()
    table.keep([ran], tmp_path)
    table.keep([{**ran, "id": "T9", "seed": 8}], tmp_path)
    table.keep([{**ran, "seed": 9}], tmp_path)
    kept = json.loads((tmp_path / "report.json").read_text())
    assert [(each["id"], each["seed"]) for each in kept] == [("T0", 9), ("T9", 8)]
    not_run = {"id": "N1", "what": "a link", "passes": "", "unit": "batches", "not_run": "no namespaces"}
    assert "not run: no namespaces" in table.plain([not_run])
    assert "| N1 | a link |  | - | - | - | not run: no namespaces | - |" in table.markdown([not_run])
