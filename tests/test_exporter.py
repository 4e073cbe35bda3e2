"""What stands beside a TorchServe: readiness, liveness and metrics, for probes, Prometheus and the proxy."""

import json
import re
import tempfile
import time
from contextlib import ExitStack

import pytest
import requests

from cloudvid_serving.worker_starts import WorkerStarts
from deploy.exporter import Exporter, Http
from support.loopback import free_port, serving
from support.proxies import key_file, reply, stub

STAGES = ("t2i", "i2v")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An exporter beside stand-ins for TorchServe's three ports, whose answers a test changes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where workers of other tests have left their notes
    state = {"ping": 200, "workers": {"t2i": ["READY"], "i2v": ["READY"]}, "pending": 0, "now": 0.0}
    state["keys"] = {"inference": "inference-key", "management": "management-key"}

    def inference(handler, body):
        assert handler.headers["Authorization"] == f"Bearer {state['keys']['inference']}"
        reply(handler, state["ping"])

    def management(handler, body):
        assert handler.headers["Authorization"] == f"Bearer {state['keys']['management']}"
        statuses = state["workers"].get(handler.path.removeprefix("/models/"))
        pending = state["pending"]
        model = {
            "workers": [{"status": status} for status in statuses or []],
            "jobQueueStatus": {"pendingRequests": pending if isinstance(pending, int) else pending[handler.path[-3:]]},
        }
        body = json.dumps([model]).encode()
        reply(handler, 404 if statuses is None else 200, state.get("told", body))

    def metrics(handler, body):
        assert handler.path == "/metrics"
        reply(handler, state.get("metrics", 200), b"ts_inference_requests_total 1.0\n", "text/plain")

    port = free_port()
    with ExitStack() as stack:
        for above, answer in enumerate((inference, management, metrics)):
            stack.enter_context(stub(answer, port + above))
        yield Exporter(port, STAGES, key_file(tmp_path), clock=lambda: state["now"]), state


def ask(exporter, target):
    status, media_type, body = exporter.answer("GET", target)
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


def test_restarts_of_workers_are_counted_from_their_sockets(fake, tmp_path, monkeypatch):
    exporter, _ = fake
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    starts = WorkerStarts()
    for socket in ("/tmp/.ts.sock.9000", "/tmp/.ts.sock.9001", "/tmp/.ts.sock.9000", "/tmp/.ts.sock.9000"):
        starts.note("i2v", ["model_service_worker.py", "--sock-name", socket])
    _, told = ask(exporter, "/ready")
    assert "restarts" not in told["stages"]["t2i"]
    assert told["stages"]["i2v"]["restarts"]["count"] == 2
    assert abs(told["stages"]["i2v"]["restarts"]["last"] - time.time()) < 60
    lines = ask(exporter, "/metrics")[1].splitlines()
    assert 'cloudvid_worker_restarts_total{stage="i2v"} 2' in lines
    assert 'cloudvid_worker_restarts_total{stage="t2i"} 0' in lines
    starts.clear()
    assert ask(exporter, "/ready")[1]["stages"]["i2v"].get("restarts") is None


def test_each_stage_that_is_missing_is_named(fake):
    exporter, state = fake
    state["workers"] = {"t2i": ["UNLOADING"], "i2v": []}
    _, told = ask(exporter, "/ready")
    assert told["message"] == "t2i and i2v have no worker that is ready"
    assert list(told["stages"]) == ["t2i", "i2v"]
    state["workers"]["t2i"] = ["READY"]
    _, told = ask(exporter, "/ready?stage=t2i&stage=i2v")
    assert told["message"] == "i2v has no worker that is ready"
    assert told["stages"]["t2i"]["workers"] == {"READY": 1, "UNLOADING": 0}


@pytest.mark.parametrize(
    "told", [b"", b"[]", b"{}", b"[{}]", b'[{"workers": [{}]}]', b'[{"workers": []}]', b'[{"workers": 7}]', b"[1, 2]"]
)
def test_what_is_no_state_counts_as_not_ready(fake, told):
    exporter, state = fake
    state["told"] = told
    assert ask(exporter, "/ready?stage=t2i")[1]["stages"] == {"t2i": None}


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


def test_keys_that_were_renewed_are_sent_from_then_on(fake, tmp_path):
    exporter, state = fake
    path = tmp_path / "key_file.json"
    assert ask(exporter, "/ready")[0] == 200
    told = json.loads(path.read_text())
    for kind in ("inference", "management"):
        told[kind]["key"] = state["keys"][kind] = f"another-{kind}-key"
    path.write_text(json.dumps(told))
    assert ask(exporter, "/ready")[0] == 200
    assert ask(exporter, "/live") == (200, {"status": "alive"})


def test_an_unknown_stage_or_path_is_named(fake):
    exporter, _ = fake
    status, told = ask(exporter, "/ready?stage=t2i&stage=other")
    assert (status, told["code"], told["type"]) == (404, 404, "ModelNotFoundException")
    assert told["message"] == "stage: must be one of ('t2i', 'i2v'), got 'other'"
    status, told = ask(exporter, "/")
    assert (status, told["message"]) == (404, "there are /ready, /live, /metrics, /jobs and /description")


@pytest.mark.parametrize("fault", ["given up", "silent"])
def test_a_server_counts_as_dead_after_a_minute(fake, fault, tmp_path):
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
    what = "does not answer" if fault == "silent" else "has given workers up"
    assert told["message"] == f"TorchServe {what}, for 60 s: restart it"


def test_a_server_that_is_ill_says_for_how_long(fake):
    exporter, state = fake
    state["now"], state["ping"], state["workers"]["t2i"] = 1000.0, 500, []
    assert ask(exporter, "/live") == (200, {"status": "TorchServe has given workers up, for 0 s"})
    state["now"] = 1017.4
    assert ask(exporter, "/live") == (200, {"status": "TorchServe has given workers up, for 17 s"})


@pytest.mark.parametrize("ping", [200, 400, 401, 503])
def test_any_other_answer_is_a_sign_of_life(fake, ping):
    exporter, state = fake
    state["ping"], state["workers"] = ping, {"t2i": [], "i2v": []}
    for seconds in (0.0, 600.0):
        state["now"] = seconds
        assert ask(exporter, "/live") == (200, {"status": "alive"})


def test_a_server_that_recovers_gets_a_whole_minute_again(fake):
    exporter, state = fake
    state["workers"]["t2i"] = []
    for seconds, ping in ((0.0, 500), (50.0, 200), (70.0, 500), (120.0, 400), (130.0, 500), (189.0, 500)):
        state["now"], state["ping"] = seconds, ping
        assert ask(exporter, "/live")[0] == 200, seconds
    state["now"] = 190.0
    assert ask(exporter, "/live")[0] == 503


def test_a_server_with_a_worker_per_stage_counts_as_live(fake):
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
    assert exporter.answer("GET", "/metrics")[1] == "text/plain; version=0.0.4; charset=utf-8"
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("# TYPE")] == [
        "# TYPE cloudvid_pending_requests gauge",
        "# TYPE cloudvid_workers gauge",
        "# TYPE cloudvid_worker_restarts_total counter",
    ]
    assert 'cloudvid_pending_requests{stage="i2v"} 3' in lines
    assert 'cloudvid_workers{stage="t2i",status="READY"} 1' in lines
    assert 'cloudvid_workers{stage="t2i",status="UNLOADING"} 0' in lines
    assert lines[-1] == "ts_inference_requests_total 1.0"
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)


def test_metrics_count_workers_and_requests_of_each_stage(fake):
    exporter, state = fake
    state["workers"] = {"t2i": ["READY", "UNLOADING", "READY", "READY"], "i2v": ["UNLOADING", "SCALING"]}
    state["pending"] = {"t2i": 12, "i2v": 0}
    _, text = ask(exporter, "/metrics")
    assert [line for line in text.splitlines() if line.startswith("cloudvid_")] == [
        'cloudvid_pending_requests{stage="t2i"} 12',
        'cloudvid_pending_requests{stage="i2v"} 0',
        'cloudvid_workers{stage="t2i",status="READY"} 3',
        'cloudvid_workers{stage="t2i",status="UNLOADING"} 1',
        'cloudvid_workers{stage="i2v",status="READY"} 0',
        'cloudvid_workers{stage="i2v",status="UNLOADING"} 1',
        'cloudvid_workers{stage="i2v",status="SCALING"} 1',
        'cloudvid_worker_restarts_total{stage="t2i"} 0',
        'cloudvid_worker_restarts_total{stage="i2v"} 0',
    ]


def test_metrics_of_a_stage_that_is_silent_are_left_out(fake):
    exporter, state = fake
    state["workers"].pop("t2i")
    state["metrics"] = 503
    status, text = ask(exporter, "/metrics")
    assert status == 200
    assert 'stage="i2v"' in text
    assert 'stage="t2i"' not in text
    assert "ts_inference" not in text


def test_it_answers_over_http_with_the_length_and_type(fake, capfd):
    exporter, state = fake
    state["workers"]["i2v"] = []
    with serving(Http(0, exporter)) as http:
        url = f"http://127.0.0.1:{http.server_address[1]}"
        for target in ("/ready", "/ready?stage=t2i", "/live", "/metrics", "/nothing"):
            status, media_type, body = exporter.answer("GET", target)
            answer = requests.get(url + target, timeout=20)
            assert (answer.status_code, answer.content) == (status, body)
            assert answer.headers["Content-Type"] == media_type
            assert answer.headers["Content-Length"] == str(len(body))
        assert requests.get(f"{url}/ready?stage=t2i", timeout=20).json()["stages"].keys() == {"t2i"}
        assert http.server_address[0] == "127.0.0.1", "on loopback"
    assert capfd.readouterr() == ("", ""), "it is asked every few seconds"
