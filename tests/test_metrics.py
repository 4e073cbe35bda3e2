"""The worker's metrics: what each answer adds to its counters, worked out by hand."""

import logging
import re
from collections import Counter

import pytest
from ts.context import RequestProcessor

from cloudvid_schema.protocol import PNG, RequestError, Stage
from cloudvid_serving.jobs import Output
from support.fake_torchserve import _Worker
from support.noise import Clip, Picture


def output(**values):
    timings = {"denoise": 3000.0, "decode": 500.0, "encode": 100.0}
    return Output(b"data", PNG, 7, timings, {}, **values)


@pytest.fixture
def counted(monkeypatch, caplog):
    """Has a worker answer a batch with given outcomes; what each counter grew by, and the answers."""

    def count(*outcomes, stage=Stage.T2I):
        monkeypatch.setattr(Picture if stage is Stage.T2I else Clip, "run", lambda self, jobs: list(outcomes))
        worker = _Worker(stage, "noise@1", 0.0)
        processors = [RequestProcessor({"Content-Type": "application/json"}) for _ in outcomes]
        worker.context.request_ids = {index: str(index) for index in range(len(outcomes))}
        worker.context.request_processor = processors
        row = {"body": b'{"prompt": "a"}' if stage is Stage.T2I else b'{"image": "AAAA"}'}
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="ts.metrics.caching_metric"):
            answers = worker.handler.handle([row] * len(outcomes), worker.context)
        grown = Counter()
        pattern = r"\[METRICS\](cloudvid_\w+)\.\w+:([\d.e+-]+)\|#([^|]*)\|"
        for name, value, labels in re.findall(pattern, caplog.text):
            values = dict(label.split(":", 1) for label in labels.split(",") if ":" in label)
            assert values["stage"] == stage
            grown[name, values.get("outcome") or values.get("phase") or ""] += float(value)
        return dict(grown), answers, [processor.get_response_status_code() for processor in processors]

    return count


PHASES = "cloudvid_phase_seconds_total"
REQUESTS = "cloudvid_requests_total"


def test_a_request_adds_its_seconds_steps_and_frames(counted):
    grown, answers, statuses = counted(output(steps=4, frames=14, memory_retries=2), stage=Stage.I2V)
    assert grown == {
        (PHASES, "denoise"): 3.0,
        (PHASES, "decode"): 0.5,
        (PHASES, "encode"): 0.1,
        (REQUESTS, "done"): 1,
        ("cloudvid_steps_total", ""): 4,
        ("cloudvid_frames_total", ""): 14,
        ("cloudvid_memory_retries_total", ""): 2,
    }
    assert (answers, statuses) == ([b"data"], [200])


def test_requests_of_one_call_share_its_seconds(counted):
    """Each of them took the whole time, together they took it once."""
    grown, _, _ = counted(*[output(steps=4, together=3)] * 3)
    assert grown[PHASES, "denoise"] == pytest.approx(3.0)
    assert grown[PHASES, "decode"] == pytest.approx(0.5)
    assert grown[PHASES, "encode"] == pytest.approx(0.1)
    assert (grown[REQUESTS, "done"], grown["cloudvid_steps_total", ""], grown["cloudvid_frames_total", ""]) == (
        3,
        12,
        3,
    )


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (RequestError(422, "InvalidParameters", "no"), "refused", 422),
        (RequestError(413, "TooLarge", "no"), "refused", 413),
        (RequestError(507, "OutOfMemory", "no"), "out_of_memory", 507),
        (MemoryError(), "out_of_memory", 507),
        (ValueError("a defect"), "failed", 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_failure_counts_by_its_outcome_and_adds_no_work(counted, error, outcome, code):
    grown, (body,), statuses = counted(error)
    assert grown == {(REQUESTS, outcome): 1}
    assert statuses == [code]
    assert b"a defect" not in body


def test_a_failure_takes_nothing_from_its_neighbours(counted):
    grown, answers, statuses = counted(output(steps=1), RequestError(422, "InvalidParameters", "no"), output(steps=2))
    assert statuses == [200, 422, 200]
    assert (answers[0], answers[2]) == (b"data", b"data")
    assert (grown[REQUESTS, "done"], grown[REQUESTS, "refused"], grown["cloudvid_steps_total", ""]) == (2, 1, 3)
