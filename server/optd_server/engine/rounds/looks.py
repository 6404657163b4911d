"""Reads of the gradient of a step: those that wait for the next one, and where the last one lies.

A received gradient stays in its slot until the next push needs the slot. A gradient in a worker's shared memory does
not stay: the worker may overwrite it as soon as it is answered. So a read waits for the next step, and runs at its end,
before the pushes are answered. That takes no memory, and no time unless a read is waiting.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from optd_server.engine.offload import Offload
from optd_server.store.gradients import Gradient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lent:
    """A gradient in a worker's memory that a step has used. The worker may have overwritten it since."""

    worker: str
    gradient: Gradient


class Looks:
    """The reads of one job that wait for the gradient of a step. Lives on one event loop."""

    def __init__(self) -> None:
        self.gradient: Gradient | None = None
        """The gradient that a running read sees, instead of the one in a slot."""
        self.lent: Lent | None = None
        """The gradient of the last step, if it lies in a worker's shared memory."""
        self._waiting: list[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = []

    @property
    def waiting(self) -> bool:
        """Whether a read is waiting."""
        return bool(self._waiting)

    def ask(self, elements: int, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Runs `work`, on about `elements` elements, at the end of the next step. Cancel the future to withdraw it."""
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        look = (elements, work, found)
        self._waiting.append(look)
        found.add_done_callback(lambda _: self._forget_look(look))
        return found

    def _forget_look(self, look: tuple[int, Callable[[], Any], asyncio.Future[Any]]) -> None:
        if look in self._waiting:
            self._waiting.remove(look)

    async def serve(self, gradient: Gradient, offload: Offload) -> None:
        """Runs all waiting reads with the gradient of the step that has just been taken. Called by the writer."""
        waiting, self._waiting = self._waiting, []
        for elements, work, found in waiting:
            if found.done():
                continue
            try:
                result = await offload.run(elements, lambda work=work: self.with_gradient(gradient, work))  # type: ignore[misc]
            except Exception as problem:  # noqa: BLE001 - it belongs to the read, not to the step
                if not found.done():
                    found.set_exception(problem)
            else:
                if not found.done():
                    found.set_result(result)

    def with_gradient(self, gradient: Gradient, work: Callable[[], T]) -> T:
        """Runs `work` while readers see `gradient` as that of the last step."""
        self.gradient = gradient
        try:
            return work()
        finally:
            self.gradient = None

    def forget(self, worker: str) -> None:
        """Forgets the gradient in a worker's memory, because the worker overwrites or closes that memory."""
        if self.lent is not None and self.lent.worker == worker:
            self.lent = None

    def release(self) -> None:
        """Cancels all waiting reads, because no step will follow."""
        self.lent = None
        for *_, found in self._waiting:
            found.cancel()
        self._waiting.clear()
