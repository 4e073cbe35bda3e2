"""docs/capacity.md: its tables follow from its own formula, and from limits that stand in the code."""

import math
import re

from cloudvid.cli.run import _MANY
from support import ROOT

TEXT = (ROOT / "docs/capacity.md").read_text()


def workers(scenes: float, seconds: float) -> int:
    return math.ceil(scenes * seconds / (86_400 * 0.7))


def test_the_table_of_workers_is_what_the_formula_gives():
    head, rows = re.findall(r"^\| clips a day (.*)\|\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)[0]
    seconds = [float(number) for number in re.findall(r"at ([\d.]+) s", head)]
    assert len(seconds) == 4
    for row in rows.splitlines():
        clips, _, *found = [cell.strip().replace(",", "") for cell in row.strip("|").split("|")]
        assert [int(number) for number in found] == [workers(int(clips), each) for each in seconds]


def test_the_plan_for_a_million_clips_adds_up():
    i2v, t2i = workers(1e6, 22.6), workers(1e6, 0.8)
    spare = [math.ceil(number / 10) for number in (i2v, t2i)]
    assert f"{i2v} + {spare[0]} GPUs for i2v, {t2i} + {spare[1]} for t2i" in TEXT
    assert f"{round(1e6 / 86_400 * 22.6)} jobs in progress" in TEXT
    assert f"opens at most {_MANY} per stage" in TEXT.replace("\n", " ")
    (size,) = re.findall(r"^job_queue_size=(\d+)", (ROOT / "config.properties").read_text(), re.MULTILINE)
    (clips,) = re.findall(r"^jobQueueSize: (\d+)", (ROOT / "handlers/i2v.yaml").read_text(), re.MULTILINE)
    assert f"TorchServe refuses the {int(clips) + 1}rd" in TEXT
    assert f"of t2i the {int(size) + 1}st" in TEXT
    assert f"{i2v + sum(spare) + t2i} pods" in TEXT
