"""Carries parcels to the job, one after the other: at once, or in a thread while local steps go on."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from optd.local_steps.outer import Answer

Work = Callable[[], Answer]


class Courier:
    """Does one thing after the other. With `background` in a thread, which lives as long as there is something to do.

    So no thread is left that would have to be ended.
    """

    def __init__(self, *, background: bool) -> None:
        self._background = background
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Answer], Work]] = deque()
        self._is_running = False

    def send(self, work: Work) -> Future[Answer]:
        """Begins with a work, or appends it to those under way."""
        future: Future[Answer] = Future()
        if not self._background:
            _do(future, work)
            return future
        with self._lock:
            self._waiting.append((future, work))
            begins, self._is_running = not self._is_running, True
        if begins:
            threading.Thread(target=self._carry, name="optd-local-steps", daemon=True).start()
        return future

    def _carry(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                future, work = self._waiting.popleft()
            _do(future, work)


def _do(future: "Future[Answer]", work: Work) -> None:
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
        future.set_exception(error)
    else:
        future.set_result(answer)
