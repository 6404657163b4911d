"""How sessions leave their jobs: when they are closed, when they are garbage, when the program ends."""

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from optd.session.job_names import will_be_started_again
from optd.transport.lane import Lane
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import OptdError

LEAVE_SECONDS = 2.0


@dataclass(slots=True)
class Departure:
    """Everything needed to leave a job. Separate from the session, so that it outlives a session that is garbage."""

    job: str
    worker: str
    transport: ServerCalls
    process: int
    epoch: int = 0
    lane: Lane | None = None
    renewals: ServerCalls | None = None
    """The connection of the heartbeat."""

    def leave(self) -> None:
        """Leaves the job, if it was joined, and ends the connection. In a forked child it does nothing."""
        if os.getpid() != self.process:
            return
        if self.lane is not None:
            # Once the worker has left, the server may write to the memory of weights in place.
            self.lane.close()
        if self.epoch:
            # A worker that is fenced has nothing to leave; if the server is away, the lease will run out.
            with suppress(OptdError):
                self.transport.leave(self.job, self.worker, self.epoch, timeout=LEAVE_SECONDS, returns=_comes_back())
        if self.renewals is not None:
            self.renewals.close()
        self.transport.close()


class OpenSession(Protocol):
    """A session, as far as this module needs it: to close it, and to tell it from others."""

    job: str
    worker: str

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch that it pushes under; 0 before it has registered."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor of another process."""
        ...

    @property
    def in_doubt(self) -> bool:
        """Whether the fate of its last push is unknown, as long as that is under way."""
        ...

    def close(self) -> None:
        """Leaves the job and ends the connection."""
        ...


open_sessions: "weakref.WeakSet[OpenSession]" = weakref.WeakSet()
when_all_are_closed: list[Callable[[], None]] = []
"""Called when the last open session of the process has been closed."""
_leaving: list[threading.Thread] = []
_is_preempted = False


def any_is_open() -> bool:
    """Whether the process has an open session."""
    return any(session.is_open for session in list(open_sessions))


def pushes_in_doubt() -> list[str]:
    """The pushes of this process whose fate is unknown, by their workers and jobs, for a message."""
    found = [each for each in list(open_sessions) if each.is_open and each.in_doubt]
    return sorted(f"worker {each.worker} to job {each.job}" for each in found)


def note_closed() -> None:
    """Notes that a session has been closed."""
    if not any_is_open():
        for callback in when_all_are_closed:
            callback()


def note_preempted() -> None:
    """Notes that the process was told to end: it is likely to be started again, and its jobs wait for it."""
    global _is_preempted  # noqa: PLW0603 - as the process is
    _is_preempted = True


def _comes_back() -> bool:
    """Whether the process ends in order to be started again: preempted, or failed in an attempt that is not the last.

    Inside a `with` block that an error leaves, that error counts; at exit, one that nobody has caught.
    """
    failed = sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None
    return _is_preempted or (failed and will_be_started_again())


def leave_later(departure: Departure) -> None:
    """Leaves in a thread, for a session that is garbage: the garbage collector must not wait for a server."""
    thread = threading.Thread(target=departure.leave, name="optd-leave", daemon=True)
    _leaving.append(thread)
    thread.start()


@atexit.register
def _leave_all() -> None:
    """Closes all sessions when the program ends, so that their jobs need not wait for the leases to run out."""
    for session in list(open_sessions):
        session.close()
    for thread in _leaving:
        thread.join(LEAVE_SECONDS)
