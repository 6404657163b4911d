"""How sessions leave their jobs: when they are closed, when nobody holds them any more, when the program ends."""

import atexit
import os
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from optd.transport.lane import Lane
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import OptdError

LEAVE_SECONDS = 2.0


@dataclass(slots=True)
class Departure:
    """What it takes to leave a job; apart from the session, so that it can be done when the session is gone."""

    job: str
    worker: str
    transport: ServerCalls
    process: int
    epoch: int = 0
    lane: Lane | None = None

    def leave(self) -> None:
        """Leaves the job, if it was joined, and ends the connection. In a forked child it does nothing."""
        if os.getpid() != self.process:
            return
        if self.lane is not None:
            # What this worker holds in place the server may write to as soon as it has left.
            self.lane.close()
        if self.epoch:
            # Fenced, deleted or unreachable: then there is nothing to leave, or the lease runs out.
            with suppress(OptdError):
                self.transport.leave(self.job, self.worker, self.epoch, timeout=LEAVE_SECONDS)
        self.transport.close()


class OpenSession(Protocol):
    """A session, as far as ending it and telling it from others take it."""

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

    def close(self) -> None:
        """Leaves the job and ends the connection."""
        ...


open_sessions: "weakref.WeakSet[OpenSession]" = weakref.WeakSet()
_leaving: list[threading.Thread] = []


def leave_later(departure: Departure) -> None:
    """For a session that nobody holds any more. The garbage collector must not wait for a server."""
    thread = threading.Thread(target=departure.leave, name="optd-leave", daemon=True)
    _leaving.append(thread)
    thread.start()


@atexit.register
def _leave_all() -> None:
    """A program that ends without closing its sessions leaves their jobs at once, not when the leases run out."""
    for session in list(open_sessions):
        session.close()
    for thread in _leaving:
        thread.join(LEAVE_SECONDS)
