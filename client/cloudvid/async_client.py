"""`AsyncClient`: the methods of `Client` as coroutines, each call in a thread."""

import asyncio
import contextlib
import functools
import secrets
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from cloudvid.client import Client
from cloudvid_schema.protocol import Stage

_THREADS = 64
P = ParamSpec("P")
R = TypeVar("R")


def _awaited(
    method: Callable[Concatenate[Client, P], R],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, R]]:
    """A method of `Client` in a thread."""

    @functools.wraps(method)
    async def call(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[R] = loop.create_future()

        def settle(result: R | None, error: BaseException | None) -> None:
            if ended.cancelled():
                return  # its task was
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(cast(R, result))

        def work() -> None:
            result, failed = None, None
            try:
                result = method(self.client, *args, **options)
            except BaseException as error:  # whatever it is, it is the caller's
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(settle, result, failed)

        async with self._room:
            # A daemon: a program that ends does not wait for a cancelled request.
            threading.Thread(target=work, name=method.__name__, daemon=True).start()
            return await ended

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
        self._room = asyncio.Semaphore(_THREADS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self.client.close()

    text_to_image = _request(Client.text_to_image)
    image_to_video = _request(Client.image_to_video)
    send = _request(Client.send)
    status = _awaited(Client.status)
    check_ready = _awaited(Client.check_ready)
    wait_until_ready = _awaited(Client.wait_until_ready)
    scale = _awaited(Client.scale)
