"""Jobs that are cancelled while they run, on one worker and on two: F7."""

import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

from cloudvid.endpoints import errors
from cloudvid_schema.protocol import Progress, Stage
from soak.rounds import Round, Rounds, case
from soak.servers import Served

_FREE = 0.05  # seconds, beside a step
_LONG: dict[str, Any] = {"num_inference_steps": 500, "num_frames": 4, "seed": 1}
_SHORT: dict[str, Any] = {"num_inference_steps": 1, "num_frames": 2, "seed": 3}


@case("F7", count=200, short=4, unit="cancelled clips")
def test_cancelled_jobs(rounds: Rounds, server: Served) -> None:
    """A clip cancelled at a random step, half of them on one worker, half on two.

    The worker is free within that step and 50 ms, no worker restarts, the next clip has its usual bytes.
    """
    client = server.client()
    picture = client.text_to_image("a lamp", width=128, height=128, num_inference_steps=1, seed=1).data
    usual = client.image_to_video(picture, **_SHORT).data
    half = len(rounds.numbers) // 2
    for workers, numbers in ((1, rounds.numbers[:half]), (2, rounds.numbers[half:])):
        client.scale(Stage.I2V, workers)
        pids = server.pids("i2v")

        def one(each: Round, pids: set[int] = pids) -> None:
            _cancel(each, server, picture)
            assert server.client().image_to_video(picture, **_SHORT).data == usual, "the next clip is another one"
            assert server.pids("i2v") == pids, "a worker was restarted"

        rounds.do_in(lambda work=one: nullcontext(work), workers, numbers)  # type: ignore[misc]
    client.scale(Stage.I2V, 1)
    rounds.limit("free after more than a step", 100, _FREE)


def _cancel(each: Round, server: Served, picture: bytes) -> None:
    client, job, steps = server.client(), f"soak.{each.number}", each.draw.randint(2, 12)
    at: list[float] = []
    reached = threading.Event()

    def take(event: object) -> None:
        if isinstance(event, Progress):
            at.append(time.monotonic())
            if len(at) >= steps:
                reached.set()

    ended: list[float] = []

    def make() -> None:
        try:
            client.image_to_video(picture, **_LONG, job=job, on_event=take)
        except errors.Cancelled:
            ended.append(time.monotonic())

    thread = threading.Thread(target=make)
    thread.start()
    assert reached.wait(60), "the clip does not begin"
    began = time.monotonic()
    client.server.jobs.cancel(job, Stage.I2V)
    thread.join(60)
    assert ended, "it did not end as cancelled"
    longest = max(later - earlier for earlier, later in pairwise(at))
    each.rounds.measure("free after", ended[0] - began)
    each.rounds.measure("free after more than a step", max(0.0, ended[0] - began - longest))
