"""Carries parcels to the job, one after the other: at once, or in a thread while local steps go on."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from optd.local_steps.outer import Answer

Work = Callable[[], Answer]


class Courier:
    """Does one thing after the other. With `background` in a thread of its own, which starts with the first."""

    def __init__(self, *, background: bool) -> None:
        self._background = background
        self._queue: SimpleQueue[tuple[Future[Answer], Work] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._forgotten = weakref.finalize(self, self._queue.put, None)

    def send(self, work: Work) -> Future[Answer]:
        """Begins with a work, or appends it to those under way."""
        future: Future[Answer] = Future()
        if not self._background:
            _do(future, work)
            return future
        if self._thread is None:
            self._thread = threading.Thread(target=_carry, args=(self._queue,), name="optd-local-steps", daemon=True)
            self._thread.start()
        self._queue.put((future, work))
        return future

    def close(self) -> None:
        """Ends the thread after what is under way; does not wait for it."""
        self._forgotten()


def _carry(queue: "SimpleQueue[tuple[Future[Answer], Work] | None]") -> None:
    while (found := queue.get()) is not None:
        _do(*found)


def _do(future: "Future[Answer]", work: Work) -> None:
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
        future.set_exception(error)
    else:
        future.set_result(answer)
