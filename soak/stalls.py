"""F3: scenes whose steps take longer than the server waits for a sign of life: they fail, the others do not."""

from collections import Counter
from functools import partial
from typing import Any

from cloudvid import parse_scenes, render
from cloudvid.events import BatchFinished, SceneDone, SceneFailed, StageStarted
from cloudvid_schema.protocol import Stage
from soak.case import Case, check
from soak.jobs import LONGEST
from soak.report import Report, Round
from soak.servers import RESPONSE_SECONDS, Served, on_servers

_SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 1}
_LARGE: dict[str, Any] = {"width": 2048, "height": 2048, "num_inference_steps": 2}
"""A step of it takes several times the time-out: on one core, or where noise is made."""


def _document(each: Round) -> list[dict[str, Any]]:
    """Two scenes that stall, one in each stage, among two that do not."""
    parameters = {"slow_t2i": (_LARGE, {}), "slow_i2v": (_SMALL, _LARGE), "fast": (_SMALL, {}), "quick": (_SMALL, {})}
    document = [
        {
            "id": name,
            "scene_desc": f"{name} of {each.seed}",
            "t2i_params": t2i,
            "i2v_params": {"num_frames": 2, "num_inference_steps": 1, **i2v},
        }
        for name, (t2i, i2v) in parameters.items()
    ]
    each.draw.shuffle(document)
    return document


def _run(report: Report) -> None:
    on_servers(report, lambda running: partial(_batch, running))


def _batch(running: Served, each: Round) -> None:
    running.client().wait_until_ready(timeout=LONGEST)
    attempts: Counter[tuple[str, Stage]] = Counter()
    failed: dict[str, SceneFailed] = {}
    done: set[str] = set()
    for event in render(parse_scenes(_document(each)), running.client(timeout=LONGEST), each.folder):
        if isinstance(event, StageStarted):
            attempts[event.scene, event.stage] = event.attempt
        elif isinstance(event, SceneFailed):
            failed[event.scene] = event
        elif isinstance(event, SceneDone):
            done.add(event.scene)
        elif isinstance(event, BatchFinished):
            check(event.stopped is None, f"the batch ended early: {event.stopped}")
    said = {name: f"{event.error}: {event.message}" for name, event in failed.items()}
    check(done == {"fast", "quick"}, f"done: {sorted(done)}; failed: {said}")
    for stage in Stage:
        name = f"slow_{stage}"
        check(failed[name].stage is stage, f"{name} failed in {failed[name].stage}: {said[name]}")
        check(attempts[name, stage] == 2, f"{name} was tried {attempts[name, stage]} times: {said[name]}")
        each.report.count_of(f"stalls of {stage}, {running.kind}", 1)


CASE = Case(
    "F3",
    f"steps that take longer than responseTimeout ({RESPONSE_SECONDS} s)",
    "the scene fails after 2 tries, the batch goes on",
    count=10,
    short=1,
    run=_run,
    unit="batches with 2 stalls",
)
