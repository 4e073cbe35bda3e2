"""The client whose methods are awaited."""

import asyncio
import inspect
import threading

import pytest

from cloudvid import AsyncClient, Client, InvalidRequest, Stage
from support.fake_server import PICTURE, Answer, event_lines, fake_server, file_answer


def client_of(server):
    return AsyncClient(server.url, management=server.url, token="t")


def test_it_has_the_methods_and_keywords_of_the_client():
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
            assert inspect.signature(getattr(AsyncClient, name)) == inspect.signature(method)


def test_requests_are_sent_at_the_same_time():
    together = threading.Barrier(16)

    def answer(seen):
        if seen.method == "POST":
            together.wait(60)
        return file_answer()

    async def make():
        async with client_of(server) as client:
            return await asyncio.gather(*(client.text_to_image(f"cat {number}") for number in range(16)))

    with fake_server(answer) as server:
        assert [made.data for made in asyncio.run(make())] == [PICTURE] * 16


def test_events_and_errors_are_those_of_the_client():
    seen = []

    async def make():
        async with client_of(server) as client:
            await client.text_to_image("a cat", on_event=lambda event: seen.append(event.event))
            await client.text_to_image("a cat", width=3)

    with (
        fake_server(lambda request: event_lines("started", "progress", "result")) as server,
        pytest.raises(InvalidRequest, match="width: must be a multiple of 8, got 3"),
    ):
        asyncio.run(make())
    assert seen == ["started", "progress"]


def test_the_end_of_a_task_cancels_its_job():
    begun, cancelled = threading.Event(), threading.Event()

    def answer(seen):
        if seen.method == "POST":
            begun.set()
            assert cancelled.wait(60)
            return Answer(409, b'{"code": 409, "type": "Cancelled", "message": "the job was cancelled"}')
        if seen.method == "DELETE":
            cancelled.set()
        return Answer(body=b'{"jobs": []}')

    async def make():
        async with client_of(server) as client:
            task = asyncio.create_task(client.text_to_image("a cat"))
            await asyncio.to_thread(begun.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.check_ready(Stage.T2I)

    with fake_server(answer) as server:
        asyncio.run(make())
        (job,) = {seen.path.partition("?")[0] for seen in server.seen if seen.method == "DELETE"}
        (post,) = (seen for seen in server.seen if seen.method == "POST")
    assert job == f"/jobs/{post.headers['CloudVid-Job']}"
