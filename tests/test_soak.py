"""The soak's own machinery. `make test` also runs a short cut of each case: soak/test_*.py."""

import contextlib
import json
import os
import signal
import sys
import threading

import pytest

from soak import table
from soak.rounds import Case, Rounds

TOY = Case("F0", "a toy", "never", count=10, short=5)


def carried_out(test, folder, numbers=range(10), case=TOY, **options):
    """The rounds of a case, whether it failed or not."""
    rounds = Rounds(case, 7, numbers, folder, **options)
    with contextlib.suppress(pytest.fail.Exception):
        rounds.carry_out(lambda: test(rounds))
    return rounds


def toy(rounds):
    def work(each):
        drawn = each.draw.randrange(100)
        rounds.measure("drawn", drawn, "points")
        assert each.number != 3, f"drew {drawn}"

    rounds.do(work)
    rounds.limit("drawn", 50, 0.0, "points")


def test_a_failed_round_names_the_command_that_repeats_it(tmp_path, capsys):
    whole = carried_out(toy, tmp_path, is_timed=False)
    assert (whole.run, [failure["round"] for failure in whole.failures]) == (10, [3])
    assert "again: make soak CASES=F0 SEED=7 ROUND=3" in capsys.readouterr().err
    single = carried_out(toy, tmp_path, range(3, 4), is_timed=False)
    assert single.failures == whole.failures
    assert single.run == 1


def test_a_case_fails_with_all_that_failed(tmp_path):
    rounds = Rounds(TOY, 7, range(10), tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)drew \d+.*ROUND=3.*drawn: p50 is .*not below 0 points"):
        rounds.carry_out(lambda: toy(rounds))


def test_an_error_is_reported_however_much_is_added_to_it(tmp_path):
    def fails(each):
        error = ValueError("the error")
        error.add_note("while generating\n" + "what Hypothesis drew\n" * 999)
        raise error

    (failure,) = carried_out(lambda rounds: rounds.do(fails), tmp_path, range(1)).failures
    assert failure["what"].startswith("ValueError: the error")
    assert len(failure["what"]) < 10_000


def test_limits_judge_in_the_soak_alone(tmp_path):
    judged = carried_out(toy, tmp_path, range(3))
    middle = sorted(judged.samples["drawn", "points"])[1]
    assert [failure["what"].partition(",")[0] for failure in judged.failures] == [f"drawn: p50 is {middle:.3g}"]
    assert not carried_out(toy, tmp_path, range(3), is_timed=False).failures


def test_a_limit_without_a_sample_fails_a_whole_case(tmp_path):
    def unmeasured(rounds):
        rounds.do(lambda each: None)
        rounds.limit("refused after", 95, 0.1)

    whole = carried_out(unmeasured, tmp_path)
    assert [failure["what"] for failure in whole.failures] == ["refused after: nothing was measured"]
    assert not carried_out(unmeasured, tmp_path, range(1)).failures


def test_an_interrupted_case_stops_and_has_not_failed(tmp_path):
    """Its processes get the signal too, and end otherwise than they should."""
    begun = threading.Barrier(2)

    def work(each):
        begun.wait()
        if each.number == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        raise AssertionError("exit code -2")

    rounds = Rounds(TOY, 7, range(9), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        rounds.carry_out(lambda: rounds.do(work, threads=2))
    assert not rounds.failures
    assert not rounds.is_whole
    assert rounds.run == 0


def test_a_case_that_raises_or_leaves_rounds_out_has_failed(tmp_path):
    def broken(rounds):
        raise AssertionError("no server")

    def unraised(each):
        with pytest.raises(ValueError, match="never"):
            pass

    assert "no server" in carried_out(broken, tmp_path).failures[0]["what"]
    assert "DID NOT RAISE" in carried_out(lambda rounds: rounds.do(unraised), tmp_path).failures[9]["what"]
    lazy = carried_out(lambda rounds: None, tmp_path)
    assert [failure["what"] for failure in lazy.failures] == ["0 of 10 rounds were run"]


def test_results_are_kept_case_by_case(tmp_path):
    result = carried_out(toy, tmp_path).result()
    for each in (result, result | {"id": "N9"}, result | {"seed": 9}):
        table.keep(each, tmp_path)
    assert [(each["id"], each["seed"]) for each in table.read(tmp_path)] == [("F0", 9), ("N9", 7)]


TOYS = """
    import signal
    from soak.rounds import case

    @case("F0", count=2, short=1)
    def test_fine(rounds):
        '''Fine.

        Always.'''
        rounds.do(lambda each: rounds.count("done"))

    @case("F1", count=9, short=1)
    def test_ended(rounds):
        '''Ends the soak.

        Never.'''
        rounds.do(lambda each: signal.raise_signal(signal.SIGTERM))

    @case("F2", count=1, short=0)
    def test_long(rounds):
        '''Too long for a short cut.

        Always.'''
        rounds.do(lambda each: None)
"""


@pytest.fixture
def soak(pytester):
    """Runs pytest over three toy cases; its result, and where whole cases are put on record."""
    pytester.makepyfile(TOYS)
    pytester.makeconftest("from soak.conftest import *")
    report, before = pytester.path / "report.json", signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: (pytester.runpytest(f"--output={pytester.path}", *arguments), report)
    signal.signal(signal.SIGTERM, before)


def test_a_short_cut_runs_few_rounds_and_records_nothing(soak):
    result, report = soak("--case=f0")
    result.assert_outcomes(passed=1, deselected=2)
    assert not report.exists()
    result, _ = soak("--case=F2")
    result.assert_outcomes(deselected=3)


def test_whole_cases_are_put_on_record_and_shown(soak):
    result, report = soak("--soak", "--case=F0", "--case=F2", "--seed=7")
    result.assert_outcomes(passed=2, deselected=1)
    assert [(each["id"], each["run"], each["seed"]) for each in json.loads(report.read_text())] == [
        ("F0", 2, 7),
        ("F2", 1, 7),
    ]
    result.stdout.fnmatch_lines(["seed 7", "F0 * 2 * 2 * 0 * Fine", "    done 2", "*on record*F0, F2"])
    soak("--soak", "--case=F2", "--count=2", "--seed=8")
    soak("--soak", "--case=F2", "--round=0", "--seed=9")
    assert [each["seed"] for each in json.loads(report.read_text())] == [7, 9]


def test_sigterm_ends_the_soak_as_an_interrupt_does(soak, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(pytester, "runpytest", pytester.runpytest_subprocess)
    result, report = soak("--soak", "--case=F1", "--case=F2")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "F2 " not in result.stdout.str()
    assert not report.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case=nonsense"], "there is no case NONSENSE: they are F0, F1, F2"),
        (["--case=F0", "--count=0"], "must be at least 1, got 0"),
        (["--case=F0", "--round=2"], "must be 0 to 1, which F0 has, got 2"),
        (["--round=1"], "needs one --case"),
        (["--case=F0", "--round=1", "--count=2"], "and no --count"),
    ],
)
def test_rounds_that_a_case_has_not_are_refused(arguments, message, soak):
    result, _ = soak("--soak", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
