"""Z2: the body decoder and the image gate under a fuzzer that is guided by coverage (atheris, which is libFuzzer)."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from soak.examples import CORES
from soak.rounds import Round, Rounds, case
from soak.targets import TARGETS
from support import ROOT

_EXECUTIONS = 100_000
"""Of one round, which is a fuzzer process with its own seed."""
_SHORT_EXECUTIONS = 3_000
_SECONDS = 10
"""For one input; the median takes a fifth of a millisecond."""
_MOST_MIB = 512
"""Resident, of a process that starts with a hundred."""
_PATH = "client:handlers:tests"


@case("Z2", count=20, short=2, unit=f"fuzzers of {_EXECUTIONS:,} executions")
def test_fuzz(rounds: Rounds) -> None:
    """Atheris on the body decoder and the image gate, half of the rounds each.

    Nothing uncaught, no input takes 10 s, no process holds 512 MiB.
    """
    pytest.importorskip("atheris", reason="needs requirements/soak.txt")
    for name, (_, seeds, longest) in TARGETS.items():
        corpus = rounds.folder / name
        corpus.mkdir()
        for number, data in enumerate(seeds()):
            if len(data) <= longest:
                (corpus / str(number)).write_bytes(data)
    rounds.do(_fuzz, threads=CORES)


def _fuzz(each: Round) -> None:
    """One process of the fuzzer, and what it found."""
    target = list(TARGETS)[each.number % len(TARGETS)]
    (each.folder / "new").mkdir()
    options = {
        "seed": each.draw.randrange(1, 2**31),
        "runs": _EXECUTIONS if each.rounds.is_timed else _SHORT_EXECUTIONS,
        "max_len": TARGETS[target][2],
        "timeout": _SECONDS,
        "rss_limit_mb": _MOST_MIB,
        "artifact_prefix": f"{each.folder}/",
        "print_final_stats": 1,
    }
    folders = [str(each.folder / "new"), str(each.rounds.folder / target)]
    # The shell's child counts its own memory; a child of this process begins with the peak of this one.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "soak.fuzz", target]
    command += [*(f"-{name}={value}" for name, value in options.items()), *folders]
    environment = os.environ | {"PYTHONPATH": _PATH}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=900
    )
    if found := [path for path in sorted(each.folder.iterdir()) if path.is_file()]:
        raise AssertionError(_finding(found[0], target, done.stderr))
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    assert done.returncode == 0 and stats, f"{target}: ended with {done.returncode}: {done.stderr[-1500:]}"
    each.rounds.count(f"{target} executions", int(stats["number_of_executed_units"]))
    each.rounds.measure(f"{target} memory", float(stats["peak_rss_mb"]), "MiB")
    each.rounds.measure(f"{target} coverage", float(re.findall(r"cov: (\d+)", done.stderr)[-1]), "edges")


def _finding(path: Path, target: str, stderr: str) -> str:
    """What is wrong with an input that the fuzzer wrote down, and the command that reads it again."""
    found = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n(?:==|\n)", stderr, re.DOTALL)
    reason = found[1] if found else stderr[-1500:]
    text = base64.b64encode(path.read_bytes()).decode()
    again = f"echo {text} | base64 -d > input && PYTHONPATH={_PATH} .venv/bin/python -m soak.fuzz {target} input"
    return f"{target}: {path.name.partition('-')[0]}: {reason}\n  the input again: {again}"
