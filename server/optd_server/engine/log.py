"""Where the events of a job go before they are applied."""

from typing import Protocol

from optd_server.engine.events import Event


class Log(Protocol):
    """Takes the events of one job, in their order.

    The arrays of an event belong to the job. The log may read them until `append` returns, and no longer.
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
        """Takes an event that leads to `version`, and returns its position. The event is applied after that."""

    async def wait(self, position: int) -> None:
        """Returns once all events up to a position survive as the operator has chosen."""


class KeepsNothing:
    """A log that keeps nothing: an event costs neither a copy nor memory, and no version survives."""

    keeps_events = False
    durable_version = 0

    async def append(self, event: Event, version: int) -> int:
        """Lets the event go."""
        return 0

    async def wait(self, position: int) -> None:
        """Returns at once: nobody waits for what never comes."""
