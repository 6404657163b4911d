"""Who waits for the gradient of a step to look at it, and where the last one lies.

A step whose gradient was received leaves it in its slot, until the next push needs that. One whose gradient lies in
memory that a worker shares leaves nothing: the worker may write there as soon as it is answered. So who looks waits for
the next step, and looks at its end, before anybody is answered: that costs nothing while nobody looks, and no memory.
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
    """A gradient that a step was made of, and that its worker may have written over since."""

    worker: str
    gradient: Gradient


class Looks:
    """Those who wait for a step of one job, to look at its gradient. Lives on one event loop."""

    def __init__(self) -> None:
        self.gradient: Gradient | None = None
        """What is being looked at, in the place of what lies in a slot."""
        self.lent: Lent | None = None
        """The gradient of the last step, where it lies in memory that a worker shares."""
        self._waiting: list[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = []

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def ask(self, elements: int, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Has `work`, on so many elements, done at the end of the next step; cancel what is returned to leave it."""
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        look = (elements, work, found)
        self._waiting.append(look)
        found.add_done_callback(lambda _: self._forget_look(look))
        return found

    def _forget_look(self, look: tuple[int, Callable[[], Any], asyncio.Future[Any]]) -> None:
        if look in self._waiting:
            self._waiting.remove(look)

    async def serve(self, gradient: Gradient, offload: Offload) -> None:
        """Does what was asked for, with the gradient of a step that has just been made. An action of the writer."""
        waiting, self._waiting = self._waiting, []
        for elements, work, found in waiting:
            if found.done():
                continue
            try:
                result = await offload.run(elements, lambda work=work: self.with_gradient(gradient, work))  # type: ignore[misc]
            except Exception as problem:  # noqa: BLE001 - that of who looks, and not of the step
                if not found.done():
                    found.set_exception(problem)
            else:
                if not found.done():
                    found.set_result(result)

    def with_gradient(self, gradient: Gradient, work: Callable[[], T]) -> T:
        """Does `work` where `gradient` is that of the last step."""
        self.gradient = gradient
        try:
            return work()
        finally:
            self.gradient = None

    def forget(self, worker: str) -> None:
        """Says that a worker writes to its memory, or shares none any more."""
        if self.lent is not None and self.lent.worker == worker:
            self.lent = None

    def release(self) -> None:
        """Ends the wait of all: no step follows."""
        self.lent = None
        for *_, found in self._waiting:
            found.cancel()
        self._waiting.clear()
