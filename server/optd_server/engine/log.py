"""The log of a job's events: every event is appended to it before it is applied."""

from typing import Protocol

from optd_server.engine.events import Event
from optd_server.engine.state import JobState
from optd_wire.errors import NothingDurable


class Log(Protocol):
    """The log of one job, which takes its events in order.

    The arrays of an event belong to the job. The log may read them only until `append` returns.
    """

    @property
    def keeps_events(self) -> bool:
        """Whether the log keeps what it is given.

        If so, a gradient in a worker's memory is copied once, as it is checked. What is applied and what is kept are
        then the same bytes, whatever the worker does meanwhile.
        """

    @property
    def brings_back(self) -> bool:
        """Whether a job that has failed half-way is loaded again from what the log has of it."""

    @property
    def durable_version(self) -> int:
        """The newest version of the job that survives a restart, and with a disk a power cut too."""

    async def append(self, event: Event, version: int, before: JobState | None) -> int:
        """Append an event that leads to `version`, and return its position. The caller applies it afterwards.

        `before` is the job's state before the event; None for `Created`. Raise `DiskFull`, and change nothing then.
        """

    def take_back(self, version: int) -> None:
        """Remove the last event, which could not be applied. `version` is that of the job before it."""

    def note_failed(self) -> None:
        """Have the job, which has failed half-way, loaded again if the log `brings_back`."""

    async def wait(self, position: int) -> None:
        """Wait until all events up to a position have the durability that the operator chose."""

    async def make_durable(self, version: int | None) -> None:
        """Have a version survive a power cut, and wait for that; None: everything so far. Raise `NothingDurable`."""


class KeepsNothing:
    """A log that keeps nothing: an event costs no copy and no memory, and no version survives a restart."""

    keeps_events = False
    brings_back = False
    durable_version = 0

    async def append(self, event: Event, version: int, before: JobState | None) -> int:
        """Drop the event."""
        return 0

    def take_back(self, version: int) -> None:
        """Do nothing."""

    def note_failed(self) -> None:
        """Do nothing."""

    async def wait(self, position: int) -> None:
        """Return at once: nothing will ever be durable here."""

    async def make_durable(self, version: int | None) -> None:
        """Raise `NothingDurable`."""
        raise NothingDurable
