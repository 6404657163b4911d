"""Tells whom a worker waits for while its push waits for others, in lines at growing intervals.

A thread of its own asks the server, by calls of its own: the push neither waits for it nor fails by it. A push that is
answered in time costs two assignments.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optd.session.awaited import all_whom, at_the_latest
from optd.session.saying import lasted, say
from optd_wire.errors import OptdError
from optd_wire.values import RoundInfo

logger = logging.getLogger("optd")

PATIENCE_SECONDS = 5.0
FIRST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 10.0, 300.0
SHORTEST_SECONDS = 0.02
"""Between two looks, however short the timeout is."""
WARNS_AFTER_SECONDS = 30.0
"""From then on the lines are warnings."""

Ask = Callable[[], Sequence[RoundInfo]]
"""Asks the server once for the open rounds."""


class RoundWatch:
    """Watches the pushes of one worker, which come one after another.

    `ask` is referred to weakly, so that a session that is otherwise garbage ends. `timeout` is that of a push: shortly
    before it is over, the server is asked whom the push has waited for.
    """

    def __init__(self, job: str, worker: str, ask: "weakref.WeakMethod[Ask]", timeout: float, *, tells: bool) -> None:
        self._job = job
        self._worker = worker
        self._ask = ask
        self._timeout = timeout
        self._tells = tells
        self._began: float | None = None
        """When the push that is under way began."""
        self._seen: tuple[float, RoundInfo] | None = None
        """The last answer, and the beginning of the push that it is about."""
        self._thread: threading.Thread | None = None
        self._due = 0.0
        """When the thread looks next."""
        self._woken = threading.Event()
        self._is_over = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the push that the block makes."""
        self._began = time.monotonic()
        if self._thread is None:
            self._start()
        elif self._due > self._began + self._patience:
            self._woken.set()  # it sleeps for long, because an earlier push waited for long
        try:
            yield
        finally:
            self._began = None

    def stop(self) -> None:
        """Ends the thread soon, without waiting for it."""
        self._is_over = True
        self._woken.set()

    @property
    def _patience(self) -> float:
        return max(SHORTEST_SECONDS, min(PATIENCE_SECONDS, self._timeout / 2))

    def waited_for(self) -> str:
        """Whom the push that is under way has been waiting for, as far as the server has told; else empty."""
        seen = self._seen
        return "" if seen is None or seen[0] != self._began else all_whom(seen[1], self._worker)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="optd-rounds", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as problem:  # no thread can start, for instance at interpreter shutdown
            logger.debug("nothing is told of rounds that wait: %s", problem)

    def _watch(self) -> None:
        patience = self._patience
        watched: float | None = None
        found: RoundInfo | None = None
        pause = patience
        while True:
            self._due = time.monotonic() + pause
            # A push that has begun since then has seen the old time, and wakes nobody.
            self._woken.wait(pause if self._began == watched else min(pause, patience))
            self._woken.clear()
            if self._is_over:
                return
            began, now = self._began, time.monotonic()
            if self._ask() is None:
                return  # the session is garbage
            if began is None:
                pause = patience
                continue
            if began != watched:
                watched, interval = began, FIRST_INTERVAL_SECONDS
                due, last = began + PATIENCE_SECONDS, began + self._timeout - min(1.0, self._timeout / 4)
            if now >= min(due, last):
                found = self._look(began)
                last = last if now < last else float("inf")
            if now >= due:
                self._tell(began, found)
                due, interval = now + interval, min(2 * interval, LONGEST_INTERVAL_SECONDS)
            pause = max(0.0, min(due, last) - time.monotonic())

    def _look(self, began: float) -> RoundInfo | None:
        """Asks for the open rounds; returns the one that the push is in, and keeps it for an error."""
        ask = self._ask()
        if ask is None:
            return None
        try:
            rounds = ask()
        except OptdError as error:  # the push itself meets the same server, and tells of it
            logger.debug("job %s: not told whom the push of %s waits for: %s", self._job, self._worker, error)
            return None
        found = next((one for one in rounds if self._worker in one.arrived), None)
        if found is not None:
            self._seen = began, found
        return found

    def _tell(self, began: float, found: RoundInfo | None) -> None:
        """Says whom the push waits for, unless it has just been answered, or waits for nobody."""
        if not self._tells or found is None or self._began != began:
            return
        seconds = time.monotonic() - began
        reasons = [reason for reason in (all_whom(found, self._worker), at_the_latest(found)) if reason]
        if reasons:
            line = f"job {self._job}: step {found.step} waits for {'; '.join(reasons)}; {lasted(seconds)} so far"
            say(line, logging.WARNING if seconds >= WARNS_AFTER_SECONDS else logging.INFO)
