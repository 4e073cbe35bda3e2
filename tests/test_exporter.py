"""What stands beside a TorchServe: readiness, liveness and metrics, for probes, Prometheus and the proxy."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack

import psutil
import pytest
import requests
from conftest import ROOT
from exporter import Exporter
from loopback import free_port
from proxies import key_file, reply, stub, until
from torchserve_process import PORTS, alive_after

STAGES = ("t2i", "i2v")


@pytest.fixture
def fake(tmp_path):
    """An exporter beside stand-ins for TorchServe's three ports, whose answers a test changes."""
    state = {"ping": 200, "workers": {"t2i": ["READY"], "i2v": ["READY"]}, "pending": 0, "now": 0.0}

    def inference(handler, body):
        assert handler.headers["Authorization"] == "Bearer inference-key"
        reply(handler, state["ping"])

    def management(handler, body):
        assert handler.headers["Authorization"] == "Bearer management-key"
        statuses = state["workers"].get(handler.path.removeprefix("/models/"))
        model = {
            "workers": [{"status": status} for status in statuses or []],
            "jobQueueStatus": {"pendingRequests": state["pending"]},
        }
        reply(handler, 404 if statuses is None else 200, json.dumps([model]).encode())

    def metrics(handler, body):
        reply(handler, 200, b"ts_inference_requests_total 1.0\n", "text/plain")

    port = free_port()
    with ExitStack() as stack:
        for above, answer in enumerate((inference, management, metrics)):
            stack.enter_context(stub(answer, port + above))
        yield Exporter(port, STAGES, key_file(tmp_path), clock=lambda: state["now"]), state


def ask(exporter, target):
    status, media_type, body = exporter.answer(target)
    return status, json.loads(body) if media_type == "application/json" else body.decode()


def test_a_stage_is_ready_while_one_of_its_workers_is(fake):
    exporter, state = fake
    assert ask(exporter, "/ready") == (
        200,
        {
            "stages": {
                "t2i": {"workers": {"READY": 1, "UNLOADING": 0}, "pending_requests": 0},
                "i2v": {"workers": {"READY": 1, "UNLOADING": 0}, "pending_requests": 0},
            }
        },
    )
    state["workers"]["i2v"] = ["UNLOADING", "UNLOADING"]
    assert ask(exporter, "/ready?stage=t2i")[0] == 200
    status, told = ask(exporter, "/ready?stage=i2v")
    assert (status, told["code"], told["message"]) == (503, 503, "i2v has no worker that is ready")
    assert told["stages"] == {"i2v": {"workers": {"READY": 0, "UNLOADING": 2}, "pending_requests": 0}}
    assert ask(exporter, "/ready")[0] == 503
    state["workers"]["i2v"] = []
    assert ask(exporter, "/ready?stage=i2v")[0] == 503, "scaled to none"
    state["workers"]["i2v"] = ["UNLOADING", "READY"]
    assert ask(exporter, "/ready")[0] == 200


def test_without_keys_or_a_server_nothing_is_ready(fake, tmp_path):
    exporter, state = fake
    state["workers"].pop("t2i")
    assert ask(exporter, "/ready?stage=t2i") == (
        503,
        {
            "code": 503,
            "type": "ServiceUnavailableException",
            "message": "t2i has no worker that is ready",
            "stages": {"t2i": None},
        },
    )
    nowhere = Exporter(free_port(), STAGES, tmp_path / "key_file.json")
    assert ask(nowhere, "/ready")[0] == 503
    assert "cloudvid_workers{" not in ask(nowhere, "/metrics")[1]


def test_an_unknown_stage_or_path_is_named(fake):
    exporter, _ = fake
    assert ask(exporter, "/ready?stage=other")[0] == 404
    assert ask(exporter, "/")[0] == 404


@pytest.mark.parametrize("fault", ["given up", "silent"])
def test_a_server_counts_as_dead_a_minute_after_it_gave_its_workers_up_or_fell_silent(fake, fault, tmp_path):
    exporter, state = fake
    ill = exporter
    if fault == "silent":
        ill = Exporter(free_port(), STAGES, tmp_path / "key_file.json", clock=lambda: state["now"])
    else:
        assert ask(exporter, "/live") == (200, {"status": "alive"})
        state["ping"], state["workers"]["i2v"] = 500, ["UNLOADING"]
    assert ask(ill, "/live")[0] == 200
    state["now"] = 59.0
    assert ask(ill, "/live")[0] == 200
    state["now"] = 60.0
    status, told = ask(ill, "/live")
    assert (status, told["code"]) == (503, 503)
    assert told["message"].endswith("restart it")


def test_a_server_that_recovers_gets_a_whole_minute_again(fake):
    exporter, state = fake
    state["workers"]["t2i"] = []
    for seconds, ping in ((0.0, 500), (50.0, 200), (70.0, 500), (120.0, 400), (130.0, 500), (189.0, 500)):
        state["now"], state["ping"] = seconds, ping
        assert ask(exporter, "/live")[0] == 200, seconds
    state["now"] = 190.0
    assert ask(exporter, "/live")[0] == 503


def test_a_server_whose_stages_all_have_a_worker_lives_though_another_worker_was_given_up(fake):
    exporter, state = fake
    state["ping"], state["workers"]["i2v"] = 500, ["READY", "UNLOADING"]
    for seconds in (0.0, 600.0):
        state["now"] = seconds
        assert ask(exporter, "/live")[0] == 200


SAMPLE = re.compile(r'[a-zA-Z_:][\w:]*(\{(\w+="[^"]*",?)*\})? -?[\d.eE+-]+')


def test_metrics_are_what_prometheus_reads_and_torchserves_own_follow(fake):
    exporter, state = fake
    state["pending"] = 3
    status, text = ask(exporter, "/metrics")
    assert status == 200
    lines = text.splitlines()
    assert 'cloudvid_pending_requests{stage="i2v"} 3' in lines
    assert 'cloudvid_workers{stage="t2i",status="READY"} 1' in lines
    assert 'cloudvid_workers{stage="t2i",status="UNLOADING"} 0' in lines
    assert lines[-1] == "ts_inference_requests_total 1.0"
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)


def test_the_real_server_has_one(server):
    """Five ports above its first; what waits is counted while it waits."""
    url = f"http://127.0.0.1:{server.process.port + PORTS - 1}"
    ready = requests.get(f"{url}/ready", timeout=20)
    assert ready.status_code == 200
    assert {stage: state["workers"]["READY"] for stage, state in ready.json()["stages"].items()} == {"t2i": 1, "i2v": 1}
    assert requests.get(f"{url}/live", timeout=20).json() == {"status": "alive"}
    client = server.client()
    picture = client.text_to_image("a", width=64, height=64, num_inference_steps=1).data
    runs, second_runs = threading.Event(), threading.Event()

    def clip(on_event):
        client.image_to_video(picture, num_frames=14, num_inference_steps=20, on_event=on_event)

    first = threading.Thread(target=clip, args=(lambda event: runs.set(),))
    first.start()
    assert runs.wait(timeout=60)
    second = threading.Thread(target=clip, args=(lambda event: second_runs.set(),))
    second.start()

    def waits():
        metrics = requests.get(f"{url}/metrics", timeout=20).text
        assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in metrics.splitlines())
        assert not second_runs.is_set(), "the second began before it was seen waiting"
        return 'cloudvid_pending_requests{stage="i2v"} 1\n' in metrics

    until(waits)
    first.join()
    second.join()
    metrics = requests.get(f"{url}/metrics", timeout=20).text
    assert 'cloudvid_pending_requests{stage="i2v"} 0\n' in metrics
    assert 'ts_inference_requests_total{model_name="i2v"' in metrics


def start(port, tmp_path, program):
    # fmt: off
    return subprocess.Popen([
        sys.executable, str(ROOT / "deploy/exporter.py"), "--port", str(port), "--stage", "t2i", "--",
        sys.executable, "-c", program,
    ], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    # fmt: on


def test_it_runs_in_the_group_of_its_command_and_ends_with_it(tmp_path):
    port = free_port()
    process = start(port, tmp_path, "import sys; sys.stdin.read()")

    def answers():
        try:
            return requests.get(f"http://127.0.0.1:{port + PORTS - 1}/ready", timeout=20).status_code == 503
        except requests.ConnectionError:
            return False

    until(answers)
    (exporter,) = psutil.Process(process.pid).children()
    assert os.getpgid(exporter.pid) == process.pid
    process.communicate()
    assert not alive_after([exporter], 30)


def test_a_port_that_is_taken_keeps_the_command_from_starting(tmp_path):
    port = free_port()
    with stub(lambda handler, body: reply(handler, 200), port + PORTS - 1):
        _, said = start(port, tmp_path, "raise SystemExit('it was started')").communicate(timeout=60)
    assert b"Address already in use" in said
    assert b"it was started" not in said
