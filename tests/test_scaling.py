"""Another number of workers: what TorchServe is told, and what is said where they do not come up."""

import json

import pytest

from cloudvid.endpoints import errors
from cloudvid_schema.protocol import Stage
from support.fake_management import Fake, worker
from support.fake_server import fake_server
from support.loopback import client_of

T2I, I2V = Stage.T2I, Stage.I2V


def never(seconds):
    raise AssertionError("nothing to wait for")


def test_scaling_waits_until_all_are_ready_and_leaves_the_ceiling():
    fake = Fake(new=lambda number: worker(number, "UNLOADING", pid=-1))
    looks = []

    def looked(stage):
        looks.append(stage)
        if len(looks) == 3:
            fake.workers["i2v"][1] = worker(9002)

    fake.looked = looked
    shown = []
    with fake_server(fake) as server:
        seen = client_of(server, sleep=lambda seconds: None).scale(I2V, 2, on_status=shown.append)
    assert (seen.ready, len(seen.workers), seen.max_workers) == (2, 2, 64)
    assert [each.ready for each in shown] == [1, 2]
    assert fake.puts[-1] == ("i2v", 2, 64)
    assert {stage for stage, *_ in fake.puts} == {"i2v"}


def test_scaling_down_and_to_nothing_ends_the_newest():
    fake = Fake(t2i=(9000, 9002, 9003))
    with fake_server(fake) as server:
        client = client_of(server, sleep=never)
        assert [each.id for each in client.scale(T2I, 2).workers] == ["9000", "9002"]
        assert client.scale(T2I, 0).workers == ()
    assert (len(fake.workers["i2v"]), fake.most) == (1, {"t2i": 64, "i2v": 64})


@pytest.mark.parametrize("count", [-1, 65])
def test_too_many_workers_are_refused_and_nothing_changes(count):
    fake = Fake()
    with fake_server(fake) as server:
        client = client_of(server)
        with pytest.raises(
            errors.InvalidRequest, match=rf"workers: must be 0 to 64, which is maxWorkers .* got {count}$"
        ):
            client.scale(T2I, count)
        assert fake.puts == []
        client.scale(T2I, 3, max_workers=3)
    assert fake.most["t2i"] == 3


TRACEBACK = """
2026-01-01T00:00:00,000 [INFO ] W-9000-i2v_0.1.0-stdout MODEL_LOG - ValueError: of another worker
2026-01-01T00:00:00,000 [INFO ] W-9002-i2v_0.1.0-stdout MODEL_LOG -     raise SettingsError(f"no")
2026-01-01T00:00:00,000 [INFO ] W-9002-i2v_0.1.0-stdout MODEL_LOG - cloudvid_stages.settings.SettingsError: model x is not there
2026-01-01T00:00:00,000 [INFO ] W-9002-i2v_0.1.0-stdout MODEL_LOG - Backend worker process died.
2026-01-01T00:00:00,000 [INFO ] W-9002-i2v_0.1.0-stdout MODEL_LOG - RuntimeError: 500 - Unknown exception
"""
NO_ROOM = "2026-01-01T00:00:00,000 [INFO ] W-9002-i2v_0.1.0-stdout MODEL_LOG - torch.OutOfMemoryError: CUDA out of memory. Tried\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (TRACEBACK, ["SettingsError: model x is not there", "fix this, then scale again"]),
        (
            NO_ROOM.replace("torch.OutOfMemoryError: CUDA out of memory. Tried", "MemoryError"),
            ["MemoryError", "this machine is out of memory"],
        ),
        (NO_ROOM, ["OutOfMemoryError: CUDA out of memory", "another worker needs another GPU"]),
        ("", ["the server's log", "for lack of memory"]),
    ],
    ids=["settings", "memory", "GPU memory", "no word"],
)
def test_a_worker_that_keeps_dying_is_explained_and_rolled_back(log, said, tmp_path):
    keys = {name: {"key": "k", "expiration time": "2100-01-01T00:00:00Z"} for name in ("inference", "management")}
    (tmp_path / "key_file.json").write_text(json.dumps(keys))
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs/model_log.log"
    path.write_text(TRACEBACK.replace("model x", "an old one"))
    fake = Fake(new=lambda number: worker(number, "UNLOADING", pid=-1))
    pids = iter([-1, 11, 11, 12, 13])

    def looked(stage):
        if len(fake.workers["i2v"]) == 2:
            fake.workers["i2v"][1]["pid"] = next(pids)
            if fake.workers["i2v"][1]["pid"] == 12:
                path.write_text(path.read_text() + log)

    fake.looked = looked
    with fake_server(fake) as server:
        client = client_of(server, token=None, key_file=tmp_path / "key_file.json", sleep=lambda seconds: None)
        with pytest.raises(errors.NotScaled) as failed:
            client.scale(I2V, 2)
    text = str(failed.value)
    assert text.startswith("worker 9002 of i2v died 2 times while loading: ")
    assert all(words in text for words in [*said, "i2v is back to 1 worker"]), text
    assert "an old one" not in text
    assert (len(fake.workers["i2v"]), fake.most["i2v"]) == (1, 64)
    assert failed.value.status.ready == 1


def test_a_worker_that_is_merely_slow_is_left_to_load():
    fake = Fake(new=lambda number: worker(number, "UNLOADING", pid=-1))
    now = [0.0]
    with (
        fake_server(fake) as server,
        pytest.raises(errors.NotScaled, match="i2v has 1 of 2 workers ready after 3 s; the change was not undone"),
    ):
        client_of(server, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)).scale(I2V, 2, timeout=3)
    assert len(fake.workers["i2v"]) == 2


def test_a_worker_that_was_given_up_is_replaced():
    """It still counts, and TorchServe never starts it again: the first that is not ready, and what follows it, go."""
    fake = Fake(i2v=(9001, 9002))
    fake.ping, fake.last = 500, 9002
    fake.workers["i2v"][1] = worker(9002, "UNLOADING")
    with fake_server(fake) as server:
        seen = client_of(server, sleep=never).scale(I2V, 2)
    assert [each.id for each in seen.workers] == ["9001", "9003"]


def test_a_ready_worker_makes_a_stage_ready_despite_another():
    fake = Fake(t2i=())
    fake.ping = 500
    with fake_server(fake) as server:
        client = client_of(server)
        client.check_ready(I2V)
        seen = {stage: client.server.look(stage) for stage in (T2I, I2V)}
        assert [(seen[stage].ready, seen[stage].unhealthy) for stage in (T2I, I2V)] == [(0, True), (1, True)]
        with pytest.raises(errors.Unhealthy, match="workers fail to start"):
            client.check_ready()
        fake.ping = 200
        with pytest.raises(errors.NotReady, match="t2i has no workers; start one with `cloudvid scale t2i 1`"):
            client.check_ready()
