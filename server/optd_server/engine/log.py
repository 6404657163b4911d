"""The log of a job's events: every event is appended to it before it is applied."""

from typing import Protocol

from optd_server.engine.events import Event


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
    def durable_version(self) -> int:
        """The newest version of the job that survives a restart."""

    async def append(self, event: Event, version: int) -> int:
        """Appends an event that leads to `version`, and returns its position. The caller applies it afterwards."""

    async def wait(self, position: int) -> None:
        """Waits until all events up to a position have the durability that the operator chose."""


class KeepsNothing:
    """A log that keeps nothing: an event costs no copy and no memory, and no version survives a restart."""

    keeps_events = False
    durable_version = 0

    async def append(self, event: Event, version: int) -> int:
        """Drops the event."""
        return 0

    async def wait(self, position: int) -> None:
        """Returns at once: nothing will ever be durable here."""
