"""How many requests a batch has in the server's hands at once."""

from cloudvid import RenderOptions, Stage, parse_scenes, render
from support.fake_torchserve import fake_torchserve
from support.folders import contents, scenes
from support.loopback import client_of, closed_port


def run(folder, count, condition, workers=1, options=None, **addresses):
    """The server of a batch, whose requests it holds until the condition of the server has come true once.

    A condition that stays false for a minute lets them go, for the test to say what was missing.
    """

    def hold(stage, body):
        with server.arrived:
            server.arrived.wait_for(lambda: condition(server), timeout=60)

    with fake_torchserve(workers=workers, step_seconds=0.02, fault=hold) as server:
        list(render(parse_scenes(scenes(count)), client_of(server, **addresses), folder, options))
    return server


def test_both_stages_work_at_once_with_one_request_waiting(tmp_path):
    # The first clip needs the first picture, which therefore may not wait for it.
    server = run(tmp_path, 8, lambda server: server.overlapped or not server.posts[Stage.I2V])
    assert server.overlapped
    assert server.most_running == 2, "one that runs and one that waits"


def test_more_workers_get_more_requests_at_once(tmp_path):
    assert run(tmp_path, 12, lambda server: server.most_running >= 4, workers=3).most_running == 4


def test_several_workers_fill_the_same_folder_as_one(tmp_path):
    for workers in (1, 3):
        run(tmp_path / str(workers), 7, lambda server: True, workers)
    assert contents(tmp_path / "3") == contents(tmp_path / "1")


def test_flags_set_the_requests_if_workers_cannot_be_counted(tmp_path):
    options = RenderOptions(concurrency={Stage.T2I: 3, Stage.I2V: 2})
    nowhere = f"http://127.0.0.1:{closed_port()}"
    server = run(tmp_path, 9, lambda server: server.most_running >= 3, 3, options, management=nowhere)
    assert server.most_running == 3
