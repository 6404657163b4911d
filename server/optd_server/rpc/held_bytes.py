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

    def give_back(self) -> None:
        """Hold nothing any more: the message has been processed."""
        count, job = self._count, self._job
        self._count, self._job = 0, None
        self._server.give_back(count)
        if job is not None:
            job.give_back(count)

    def _left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)
