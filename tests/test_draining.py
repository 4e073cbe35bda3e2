"""What a server has in hand when it is told to stop."""

import json

import pytest

from cloudvid_schema.ports import EXPORTER
from cloudvid_schema.protocol import JobStatus, Stage
from deploy import server as command
from deploy.draining import InHand, drain, in_hand
from deploy.torchserve import Server
from support.fake_server import Answer, fake_server

JOB = JobStatus(id="film.1", stage=Stage.I2V, state="running", since=0, phase="denoise", step=3, steps=25)


def exporter(seen):
    """One job runs, one is announced, and two requests wait."""
    queued = {"id": "film.2", "stage": "i2v", "state": "queued", "since": 0}
    states = {"t2i": {"workers": {}, "pending_requests": 2}, "i2v": None}
    document = {"jobs": [JOB.model_dump(), queued]} if seen.path == "/jobs" else {"code": 503, "stages": states}
    return Answer(200 if seen.path == "/jobs" else 503, json.dumps(document).encode())


def test_requests_in_hand_are_counted_and_named(tmp_path):
    with fake_server(exporter) as server:
        found = in_hand(tmp_path, server.server_address[1] - EXPORTER)
    assert str(found) == "1 in progress (film.1 on i2v denoise 3/25), 2 waiting"
    with fake_server(lambda seen: Answer(200, b"[]")) as other:
        assert not in_hand(tmp_path, other.server_address[1] - EXPORTER)


@pytest.mark.parametrize(("patience", "left"), [(600, InHand()), (1.5, InHand([JOB], 0))])
def test_draining_ends_with_the_requests_or_the_patience(patience, left, capsys):
    looks, times = iter([InHand([JOB], 1), InHand([JOB], 0), InHand([JOB], 0), InHand()]), iter(range(9))
    slept = []
    assert drain(lambda: next(looks), patience, slept.append, lambda: next(times)) == left
    assert slept == [1.0] * (3 if patience == 600 else 1)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"waiting up to {patience:g} s for the server's requests: {InHand([JOB], 1)}"


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_stop_says_what_was_in_progress(seconds, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "running_in", lambda run_dir: Server(run_dir, 8080))
    monkeypatch.setattr(Server, "stop", lambda self: True)
    monkeypatch.setattr(command, "in_hand", lambda *_: InHand([JOB], 0))
    monkeypatch.setattr(command, "drain", lambda look, patience: look() if patience == 0 else InHand())
    text = command._stop(tmp_path, None, seconds)
    assert text == (
        "stopped"
        if seconds
        else "stopped, with requests in hand: 1 in progress (film.1 on i2v denoise 3/25), 0 waiting;"
        " `make stop DRAIN=600` waits for them up to 600 s"
    )
