"""`AsyncClient`: the methods of `Client` as coroutines, each call in a thread."""

import asyncio
import functools
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from cloudvid.client import Client
from cloudvid_schema.protocol import Stage

_THREADS = 64  # asyncio's own pool has a few more than the machine has cores
P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    method: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, R]]:
    """A method of `Client` in a thread."""

    @functools.wraps(method)
    async def call(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> R:
        work = functools.partial(method, self.client, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    return call


def _request(
    method: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, R]]:
    """The same for a method that sends a request: the end of its task cancels the job."""
    send = _awaited(method)

    @functools.wraps(method)
    async def call(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> R:
        job = options["job"] = options.get("job") or f"async.{secrets.token_hex(8)}"
        try:
            return await send(self, *args, **options)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.client.server.jobs.cancel_these, [(str(job), stage) for stage in Stage])
            raise

    return call


class AsyncClient:
    """A `Client` whose methods are awaited. If the task of a request is cancelled, so is its job on the server.

    `on_event` is called in the thread of the request; hand an event to the loop with `loop.call_soon_threadsafe`.

    Args:
        server, options: as `Client` takes them.

    Attributes:
        client: does the work.
    """

    def __init__(self, server: str | None = None, **options: Any) -> None:
        self.client = Client(server, **options)
        self._threads = ThreadPoolExecutor(_THREADS, "cloudvid")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown(wait=False)
        self.client.close()

    text_to_image = _request(Client.text_to_image)
    image_to_video = _request(Client.image_to_video)
    send = _request(Client.send)
    status = _awaited(Client.status)
    check_ready = _awaited(Client.check_ready)
    wait_until_ready = _awaited(Client.wait_until_ready)
    scale = _awaited(Client.scale)
