"""The single writer of a job: everything that changes it happens here, one action after the other."""

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any, TypeVar

from optd_wire.errors import OptdError

T = TypeVar("T")


class Writer:
    """A queue of actions and the task that runs them.

    An action runs to its end even if its caller goes away: a cancelled call must not leave half a step behind.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._work())
        self._closed: OptdError | None = None

    async def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Runs `action` after all earlier ones and returns what it returns."""
        if self._closed is not None:
            raise copy(self._closed)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((action, future))
        return await future

    async def _work(self) -> None:
        while True:
            action, future = await self._queue.get()
            if self._closed is not None:
                _fail(future, copy(self._closed))
                continue
            try:
                result = await action()
            except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
                _fail(future, error)
            else:
                if not future.done():
                    future.set_result(result)

    async def close(self, error: OptdError) -> None:
        """Lets the action that runs come to its end, then answers all others, now and later, with `error`."""
        self._closed = error
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((_nothing, done))
        await asyncio.wait([done])
        done.exception()
        self._task.cancel()


async def _nothing() -> None:
    return


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # The caller may have gone away; then nobody asks for the exception.
        future.exception()
