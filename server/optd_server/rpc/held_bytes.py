"""The bytes of the message that a call has received and not yet processed, as the byte budgets count them."""

import time

from optd_server.engine.byte_budget import ByteBudget

SMALL_BYTES = 64 << 10
"""Messages up to this size are counted and never wait, so that bulk data cannot delay renewals, joins and questions.
The number of calls bounds them."""


class HeldBytes:
    """The bytes that one call holds: they count for the server, and for their job once it is known.

    While a message waits for room it counts for neither, or one job could fill the server with what waits for it. Its
    sender sends no more meanwhile: backpressure.
    """

    def __init__(self, server: ByteBudget) -> None:
        self._server = server
        self._job: ByteBudget | None = None
        self._count = 0
        self._parked: ByteBudget | None = None
        """The budget of the job that the message is parked for, if it is."""
        self._until = 0.0

    async def take(self, count: int, seconds: float) -> None:
        """Hold a message of `count` bytes; raise `TooManyBytes` if there is no room for it within `seconds`."""
        self._until = time.monotonic() + seconds
        if count <= SMALL_BYTES:
            self._server.take_at_once(count)
        else:
            await self._server.take(count, seconds)
        self._count = count

    async def charge(self, job: ByteBudget) -> None:
        """Count the message for its job too; raise `TooManyBytes` if there is no room in the time of `take`."""
        count = self._count
        if count <= SMALL_BYTES:
            job.take_at_once(count)
        elif not job.try_take(count):
            self.give_back()
            await job.take(count, self._left())
            try:
                await self._server.take(count, self._left())
            except BaseException:
                job.give_back(count)
                raise
            self._count = count
        self._job = job

    def park(self) -> None:
        """Leave the budgets, because the turn of the message may come late; raise `TooManyBytes` if too many do so.

        The calls whose turn it is need the budgets to come to their end. What is small never waits, so it is not
        refused here either.
        """
        count, job = self._count, self._job
        if job is None or count <= SMALL_BYTES:
            self.give_back()
            return
        job.park(count)
        self.give_back()
        self._count, self._parked = count, job

    def unpark(self) -> None:
        """Hold the message again, at once, as its turn has come: a job has few slots, so few calls exceed a budget."""
        count, job = self._count, self._parked
        if job is None:
            return
        self.give_back()
        self._server.take_at_once(count)
        job.take_at_once(count)
        self._count, self._job = count, job

    def give_back(self) -> None:
        """Hold nothing any more: the message has been processed."""
        count, job, parked = self._count, self._job, self._parked
        self._count, self._job, self._parked = 0, None, None
        if parked is not None:
            parked.unpark(count)
            return
        self._server.give_back(count)
        if job is not None:
            job.give_back(count)

    def _left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)
