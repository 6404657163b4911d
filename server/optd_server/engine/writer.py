"""The single writer of a job: it runs every action that changes the job, one after the other."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from copy import copy
from types import coroutine
from typing import Any, TypeVar

from optd_wire.errors import OptdError

T = TypeVar("T")
Action = Callable[[], Coroutine[Any, Any, T]]


class Writer:
    """A queue of actions, run one after the other in the order in which they were submitted.

    An action that waits neither for earlier ones nor for a thread is done when `submit` returns, so small steps take
    no turn of the event loop. Every action runs to its end even if its caller goes away: a cancelled call must not
    leave half a step behind. `failed` is called with what a posted action raises, and the writer goes on.
    """

    def __init__(self, failed: Callable[[Exception], object]) -> None:
        self._waiting: deque[tuple[Action[Any], asyncio.Future[Any] | None]] = deque()
        self._failed = failed
        self._running = False
        self._task: asyncio.Task[None] | None = None
        self._closed: OptdError | None = None

    async def run(self, action: Action[T]) -> T:
        """Run `action` after all earlier ones, and return its result."""
        if self._closed is not None:
            raise copy(self._closed)
        return await asyncio.shield(self.submit(action))

    def submit(self, action: Action[T]) -> asyncio.Future[T]:
        """Queue `action` behind all earlier ones; the future gets its result."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            _fail(future, copy(self._closed))
        else:
            self._put(action, future)
        return future

    def post(self, action: Action[None]) -> None:
        """Queues `action`, of which nobody awaits a result, behind all earlier ones. A closed writer drops it."""
        if self._closed is None:
            self._put(action, None)

    def _put(self, action: Action[Any], future: asyncio.Future[Any] | None) -> None:
        self._waiting.append((action, future))
        if not self._running:
            self._work()

    async def close(self, error: OptdError) -> None:
        """Fail all waiting and later actions with `error`, and wait for the one that is running."""
        self._closed = error
        while self._waiting:
            _, future = self._waiting.popleft()
            if future is not None:
                _fail(future, copy(error))
        if self._task is not None:
            await asyncio.wait([self._task])

    def _work(self) -> None:
        """Run actions until none is left, or until one has to wait. A task then continues that one."""
        self._running = True
        while self._waiting:
            action, future = self._waiting.popleft()
            work = action() if future is None else self._settle(action, future)
            try:
                waits_for = work.send(None)
            except StopIteration:
                continue
            except Exception as problem:  # noqa: BLE001 - the actions behind this one must have their turn
                self._failed(problem)
                continue
            self._task = asyncio.get_running_loop().create_task(self._go_on(work, waits_for))
            return
        self._running = False

    async def _settle(self, action: Action[T], future: asyncio.Future[T]) -> None:
        try:
            result = await action()
        except Exception as error:  # noqa: BLE001 - every exception belongs to the caller
            _fail(future, error)
        else:
            if not future.done():
                future.set_result(result)

    async def _go_on(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        try:
            await _rest_of(work, waits_for)
        except Exception as problem:  # noqa: BLE001 - the actions behind this one must have their turn
            self._failed(problem)
        finally:
            self._task = None
            self._work()


@coroutine
def _rest_of(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Run the rest of a coroutine that has been started and now waits for `waits_for`."""
    while True:
        try:
            try:
                got = yield waits_for
            except BaseException as error:  # noqa: BLE001 - every exception belongs to the coroutine
                waits_for = work.throw(error)
            else:
                waits_for = work.send(got)
        except StopIteration:
            return


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # Marks the exception as retrieved: the caller may have gone away.
        future.exception()
