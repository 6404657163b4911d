"""SIGTERM, which schedulers and launchers send before they kill: the running step ends, and the process leaves.

Only a process that has left the signal to its default has this handler, from its first optimizer of torch on until its
last session is closed.
"""

import _thread
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from optd.session import departure, environment
from optd.torch.frames import has_ended, hooked_call

logger = logging.getLogger("optd")

EXIT_STATUS = 128 + signal.SIGTERM
LOOK_SECONDS = 0.05
"""How often it is looked, after the signal, whether a step has failed of which only hooks tell."""


class Preemption:
    """The handler of SIGTERM of one process.

    The first signal ends the process by `SystemExit`: at once, or when the step that runs in the main thread has ended,
    or after `seconds` if that takes longer. A second one ends the process as if there were no handler.
    """

    def __init__(self, seconds: float) -> None:
        self._process = os.getpid()
        self._seconds = seconds
        self._steps = 0
        """How many steps run in the main thread; one may run inside another."""
        self._hooked: list[FrameType] = []
        """The calls of further steps, of which hooks tell the beginning, and the end unless they fail."""
        self._is_asked = False
        self._is_leaving = False
        self._is_hurried = False
        """Whether the next signal is our own, because the step takes too long."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal, in the main thread."""
        if self._is_hurried:
            self._is_hurried = False
            self._leave_after_failure()
            if not self._is_leaving:
                self._give_up()
            return
        if self._is_asked or os.getpid() != self._process or not departure.any_is_open():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._is_asked = True
        departure.note_preempted()
        if not self._is_stepping():
            self._leave()
        # Not a `threading.Thread`: the main thread may hold one of that module's locks.
        _thread.start_new_thread(self._hurry, ())

    def _hurry(self) -> None:
        until = time.monotonic() + self._seconds
        while not self._is_leaving and not self._has_failed() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
        if not self._is_leaving:
            self._is_hurried = True
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, signal.SIGTERM)

    def _leave(self) -> None:
        self._is_leaving = True
        raise SystemExit(EXIT_STATUS)

    def _give_up(self) -> None:
        pushes = departure.pushes_in_doubt()
        # Only the server knows, and it cannot be asked here: the step that is interrupted may hold the session.
        fate = "no push of it is under way"
        if pushes:
            which = " and ".join(pushes)
            fate = f"the push of {which} still counts if its step begins before the worker leaves; else it is withdrawn"
        logger.warning(
            "SIGTERM: the process ends, and its step is given up after %g seconds (OPTD_TERM_SECONDS); %s",
            self._seconds,
            fate,
        )
        self._leave()

    def _is_stepping(self) -> bool:
        return self._steps > 0 or not all(has_ended(call) for call in self._hooked)

    def _has_failed(self) -> bool:
        """Whether a step has ended without the hook that would tell of it."""
        hooked = self._hooked
        return bool(hooked) and not self._is_stepping()

    def _leave_after_failure(self) -> None:
        """Ends the process if the signal came within a step that has failed meanwhile."""
        if self._is_asked and not self._is_leaving and self._has_failed():
            logger.warning("SIGTERM: the process ends, and its step has failed")
            self._leave()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Lets the block end if the signal comes while it runs, and ends the process then."""
        self._leave_after_failure()
        self._steps += 1
        how = "has ended"
        try:
            yield
        except BaseException as error:
            how = f"has failed: {error or type(error).__name__}"
            raise
        finally:
            self._steps -= 1
            if self._is_asked and not self._is_stepping() and not self._is_leaving:
                logger.warning("SIGTERM: the process ends, and its step %s", how)
                self._leave()

    def begin(self, call: FrameType) -> None:
        """Lets a call end if the signal comes while it runs; within `step`, `end` tells that it has."""
        self._leave_after_failure()
        self._hooked = [*(each for each in self._hooked if not has_ended(each)), call]

    def end(self) -> None:
        """The call that began last has ended."""
        self._hooked = self._hooked[:-1]


_installed: Preemption | None = None


def install() -> None:
    """Handles SIGTERM from now on, if this is the main thread and nobody else does."""
    global _installed  # noqa: PLW0603 - as the handlers of a process are
    if threading.current_thread() is not threading.main_thread() or "ipykernel" in sys.modules:
        return  # a notebook's kernel has its own way to end
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _installed = Preemption(environment.term_seconds())
        signal.signal(signal.SIGTERM, _installed)


def _of_this_thread() -> Preemption | None:
    return _installed if threading.current_thread() is threading.main_thread() else None


@contextmanager
def lasting_step() -> Iterator[None]:
    """A step of an optimizer: SIGTERM waits for its end."""
    handler = _of_this_thread()
    if handler is None:
        yield
        return
    with handler.step():
        yield


def begin_step() -> None:
    """In a hook before a step of torch: SIGTERM waits for the end of the step, also if an exception ends it."""
    handler = _of_this_thread()
    if handler is not None:
        handler.begin(hooked_call())


@contextmanager
def end_step() -> Iterator[None]:
    """In the hook after that step: SIGTERM waits for the end of the block, and not for that of the call any more."""
    handler = _of_this_thread()
    with lasting_step():
        if handler is not None:
            handler.end()
        yield


def _restore() -> None:
    """Gives the signal back to its default, unless the script has set a handler meanwhile."""
    global _installed  # noqa: PLW0603
    if _installed is None or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _installed:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _installed = None


_masks: list[set[int | signal.Signals]] = []
"""The signals that a thread had blocked before it forked, while it forks."""


def _before_fork() -> None:
    # Python forgets a signal that reaches a child before its interpreter is ready. The kernel keeps a blocked one.
    if _installed is not None:
        _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))


def _after_fork_in_parent() -> None:
    if _masks:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    """Lets the child end as it would without us: it has none of the sessions."""
    global _installed  # noqa: PLW0603
    if _installed is not None and signal.getsignal(signal.SIGTERM) is _installed:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _installed = None
    _after_fork_in_parent()


departure.when_all_are_closed.append(_restore)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
