"""What a server has in hand when it is told to stop."""

import configparser
import json

import pytest

from cloudvid_schema.ports import EXPORTER
from cloudvid_schema.protocol import JobStatus, Stage
from deploy import server as command
from deploy.draining import InHand, drain, in_hand
from deploy.torchserve import Server
from support import ROOT
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


def test_the_systemd_unit_serves_and_stops_as_the_server_does(tmp_path, monkeypatch, capsys):
    unit = configparser.ConfigParser()
    unit.optionxform = str
    unit.read_string((ROOT / "deploy/systemd/cloudvid.service").read_text())
    service = unit["Service"]
    for name in ("ExecStart", "ExecStop"):
        program, *arguments = service[name].split()
        assert program == f"{service['WorkingDirectory']}/.venv/bin/python"
        assert arguments[:2] == ["-m", "deploy.server"]
    monkeypatch.setattr("sys.argv", [*arguments[1:], "--run-dir", str(tmp_path)])
    assert command.main() == 0
    assert capsys.readouterr().out == "no server was running\n"
    assert float(arguments[-1]) < float(service["TimeoutStopSec"])


def test_a_port_that_is_no_number_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["deploy.server", "start", "--port", "abc"])
    with pytest.raises(SystemExit):
        command.main()
    assert "argument --port: must be 1 to 65530, got abc" in capsys.readouterr().err


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
