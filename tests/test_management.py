"""What the management API says, and what is made of it: each stage's workers and queue at any moment."""

import json
import os

import pytest

from cloudvid import Client
from cloudvid.cli.status import table
from cloudvid.endpoints import errors
from cloudvid.endpoints.connection import Connection, plain_session
from cloudvid.endpoints.credentials import Credentials
from cloudvid.server.server import Server
from cloudvid_schema.protocol import Stage
from support.command_line import rows
from support.fake_management import Fake, worker
from support.fake_server import Answer, error, fake_server
from support.loopback import client_of

T2I, I2V = Stage.T2I, Stage.I2V
GPU = {
    "gpu": True,
    "gpuUsage": "gpuId::1 utilization.gpu [%]::93 % utilization.memory [%]::40 % memory.used [MiB]::5120 MiB",
}


def test_a_row_shows_a_stages_workers_and_queue():
    fake = Fake()
    fake.workers["t2i"] = [worker(9000, memoryUsage=3_000_000_000, **GPU), worker(9002, "UNLOADING", pid=-1)]
    fake.description |= {"device": "cuda:1", "precision": "fp16", "peak_memory": 3_900_000_000}
    with fake_server(fake) as server:
        client = client_of(server)
        found = {stage: client.status(stage) for stage in Stage}
    assert rows(table(found))["t2i"] == {
        "stage": "t2i",
        "workers": "1 ready, 1 loading",
        "queue": "0",
        "device": "cuda:1",
        "dtype": "fp16",
        "s/step/Mpx": "0.25",
        "memory": "3.0 GB, GPU 5.4 GB, peak 3.9 GB",
        "model": "model@1234567890ab",
    }
    first = found[T2I].workers[0]
    assert (first.gpu, first.gpu_memory, first.memory) == (1, 5120 * 2**20, 3_000_000_000)


def test_a_server_that_cannot_say_all_of_it_leaves_gaps():
    fake = Fake()
    fake.description = {"model": "m@1"}
    with fake_server(fake) as server:
        client = client_of(server)
        row = rows(table({I2V: client.status(I2V)}))["i2v"]
    assert (row["device"], row["dtype"], row["s/step/Mpx"], row["memory"]) == ("-", "-", "-", "-")
    assert row["model"] == "m@1"


@pytest.mark.parametrize(
    ("workers", "pending"),
    [([], 0), ([worker(9000, "UNLOADING")], 0), ([worker(9000)], 1)],
    ids=["no worker", "none ready", "requests wait"],
)
def test_no_worker_is_asked_if_the_question_would_wait(workers, pending):
    fake = Fake()
    fake.workers["t2i"], fake.pending["t2i"] = workers, pending
    with fake_server(fake) as server:
        seen = client_of(server).status(T2I)
    assert fake.asked == 0
    assert seen.busy == bool(pending)
    assert (seen.queue, seen.description) == (pending, None)


def test_a_stage_without_ready_workers_is_not_described():
    fake = Fake(t2i=())
    with fake_server(fake) as server:
        assert client_of(server).server.describe(T2I) is None
    assert fake.asked == 0


def test_busy_workers_are_asked_once_and_keep_their_description():
    fake = Fake()
    with fake_server(fake) as server:
        client = client_of(server)
        assert client.status(T2I).description.model == "model@1234567890abcdef"
        fake.free.clear()
        fake.description["model"] = "other@1"
        looks = [client.status(T2I, patience=0.05) for _ in range(4)]
        assert fake.asked == 2, "one question at a time"
        assert all(seen.busy for seen in looks)
        assert {seen.description.model for seen in looks} == {"model@1234567890abcdef"}
        fake.pending["t2i"] = 3
        assert client.status(T2I, patience=0.05).queue == 2, "our own question is not a request"
        fake.free.set()
        fake.pending["t2i"] = 0
        assert client.status(T2I, patience=30).description.model == "other@1"


def test_what_a_worker_said_is_forgotten_once_other_processes_serve():
    fake = Fake()
    with fake_server(fake) as server:
        client = client_of(server)
        assert client.status(T2I).description is not None
        fake.workers["t2i"] = [worker(9000, pid=77)]
        fake.pending["t2i"] = 1
        assert client.status(T2I).description is None


def management(server, processes, run_dir, monkeypatch):
    """One on the machine of the server that has this folder, with these processes, of a kilobyte each."""
    keys = {kind: {"key": "t"} for kind in ("management", "inference", "API")}
    (run_dir / "key_file.json").write_text(json.dumps(keys))
    connection = Connection(plain_session(), Credentials(None, run_dir / "key_file.json", True))
    urls = dict.fromkeys(Stage, server.url)
    monkeypatch.setattr("cloudvid.server.server.resident_bytes", lambda pid: 1024 if pid in processes else None)
    return Server(connection, urls, urls)


@pytest.mark.parametrize(
    ("processes", "states"),
    [
        ({90000}, ["ready", "dead", "loading"]),
        ({90000, 90020}, ["ready", "loading", "loading"]),
        ({90020}, ["dead", "loading", "loading"]),
        (set(), ["ready", "loading", "loading"]),
    ],
    ids=["died while it loaded", "loads", "died just now", "another machine's, or a container's, numbers"],
)
def test_a_worker_without_a_process_is_dead(processes, states, tmp_path, monkeypatch):
    fake = Fake()
    fake.workers["t2i"] = [worker(9000), worker(9002, "UNLOADING"), worker(9003, "UNLOADING", pid=-1)]
    with fake_server(fake) as server:
        if processes:
            first_port = int(server.url.rpartition(":")[2]) - 1
            (tmp_path / "server.json").write_text(json.dumps({"pid": os.getpid(), "port": first_port}))
        seen = management(server, processes, tmp_path, monkeypatch).manage(T2I)
    assert [each.state for each in seen.workers] == states
    assert [each.memory for each in seen.workers] == [1024 if each.pid in processes else None for each in seen.workers]


@pytest.mark.parametrize(
    "answer",
    [Answer(200, b"<html>"), Answer(200, b"[]"), Answer(200, b"{}"), error(405, "MethodNotAllowedException")],
)
def test_what_is_no_management_api_is_named(answer):
    with (
        fake_server(lambda seen: answer) as server,
        pytest.raises(errors.Unreachable, match=rf"{server.url}/models/t2i (is not a management API|answers 405)"),
    ):
        client_of(server).status(T2I)


def test_each_stages_own_server_is_asked_where_they_live_apart():
    with fake_server(Fake(t2i=(9000, 9002))) as one, fake_server(Fake(i2v=(9001, 9003, 9004))) as other:
        connection = Connection(plain_session(), Credentials("t", None, True))
        urls = {T2I: one.url, I2V: other.url}
        both = Server(connection, urls, urls)
        assert (both.manage(T2I).ready, both.manage(I2V).ready) == (2, 3)
    client = Client(t2i_url="http://a:8080", i2v_url="http://b:9090", token="t")
    assert client.server.management == {T2I: "http://a:8081", I2V: "http://b:9091"}
