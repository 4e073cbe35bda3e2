"""The line of each request in a worker's log."""

import json
import logging

import pytest

from cloudvid_schema.protocol import MAX_JOB_ID, Stage
from cloudvid_serving.request_log import RequestLog
from support.fake_torchserve import _Worker

PROMPT = b'{"prompt": "a secret cat", "seed": 7, "num_inference_steps": 3, "width": 64, "height": 128}'


@pytest.fixture
def logged(monkeypatch, caplog):
    """Has a worker answer a request; status, headers, and the lines that its log got."""

    def log(form, body, headers, stage=Stage.T2I):
        monkeypatch.setenv("CLOUDVID_LOG_FORMAT", form)
        worker = _Worker(stage, "noise@1", 0.0)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="cloudvid_serving.request_log"):
            sent = {"Content-Type": "application/json", **headers}
            status, answered, _ = worker.answer({"body": body}, sent, lambda part: None)
        lines = [record.getMessage() for record in caplog.records if record.name == "cloudvid_serving.request_log"]
        return status, answered, lines

    return log


def test_a_request_is_one_line_without_its_prompt(logged):
    status, headers, (line,) = logged("", PROMPT, {"X-Request-Id": "trace/7", "CloudVid-Job": "film.1"})
    words = dict(word.split("=") for word in line.removeprefix("request ").split())
    assert float(words.pop("seconds")) >= 0
    assert words == {
        "request": "trace/7",
        "job": "film.1",
        "stage": "t2i",
        "outcome": "done",
        "code": "200",
        "seed": "7",
        "size": "64x128",
        "steps": "3",
        "denoise_seconds": "0.03",
        "decode_seconds": "0.005",
    }
    assert (status, headers["CloudVid-Request-Id"]) == (200, "trace/7")


@pytest.mark.parametrize("accept", ["image/png", "application/x-ndjson"])
def test_a_refused_request_is_a_line_of_json_too(logged, accept):
    body = PROMPT.replace(b"64", b"60")
    status, headers, (line,) = logged("json", body, {"X-Request-Id": "a b", "Accept": accept})
    told = json.loads(line)
    assert told.pop("seconds") >= 0
    assert told == {
        "request": "id",
        "job": "id",
        "stage": "t2i",
        "outcome": "refused",
        "code": 422,
        "error": "InvalidParameters",
    }
    assert (status, headers["CloudVid-Request-Id"]) == (422, "id"), "an id with a space is ignored"


def test_a_wrong_job_id_is_not_in_the_log(logged):
    _, _, (line,) = logged("json", PROMPT, {"CloudVid-Job": "j" * (MAX_JOB_ID + 1)})
    assert (json.loads(line)["error"], "job" in json.loads(line)) == ("InvalidParameters", False)


def test_an_unknown_form_of_the_log_is_refused_by_name():
    with pytest.raises(ValueError, match="CLOUDVID_LOG_FORMAT must be one of text, json, got 'xml'"):
        RequestLog({"CLOUDVID_LOG_FORMAT": "xml"})
