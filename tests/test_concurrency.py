"""How many requests a batch has in the server's hands at once."""

from fake_torchserve import fake_torchserve
from folders import scenes
from loopback import client_of, closed_port

from cloudvid import RenderOptions, Stage, parse_scenes, render


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


def test_both_stages_are_at_work_at_once_and_one_request_waits_at_most(tmp_path):
    # The first clip needs the first picture, which therefore may not wait for it.
    server = run(tmp_path, 8, lambda server: server.overlapped or not server.posts[Stage.I2V])
    assert server.overlapped
    assert server.most_running == 2, "one that runs and one that waits"


def test_more_workers_get_more_requests_at_once(tmp_path):
    assert run(tmp_path, 12, lambda server: server.most_running >= 4, workers=3).most_running == 4


def test_where_workers_cannot_be_counted_the_flags_say_how_many_requests(tmp_path):
    options = RenderOptions(concurrency={Stage.T2I: 3, Stage.I2V: 2})
    nowhere = f"http://127.0.0.1:{closed_port()}"
    server = run(tmp_path, 9, lambda server: server.most_running >= 3, 3, options, management=nowhere)
    assert server.most_running == 3
