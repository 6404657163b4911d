"""Limit the bytes of received messages that are held at the same time: by the server, and by each job."""

import asyncio
from collections import deque

from optd_wire.errors import TooManyBytes

SERVER_SETTING = "--max-inflight-bytes"
LEAST_WAITING_BYTES = 64 << 20
"""Messages of this size together may always wait, however small a server's limit is."""


class ByteBudgets:
    """The budget of a server, and those of its jobs, so that one busy job cannot keep all others waiting.

    A message that waits for room is in memory already. So all that wait, for whichever budget, may have as many bytes
    as the server's limit; what comes after that is refused at once.

    So does the first message of a push whose turn has not come, because other uploads are under way or its policy holds
    it: it is parked. Parked messages leave the budgets, which those uploads need to come to their end. They may have
    half of the bytes that may wait, so that uploads can wait for room too, and those of one job a quarter.
    """

    def __init__(self, limit: int = 1 << 30, job_limit: int | None = None) -> None:
        self.job_limit = limit // 2 if job_limit is None else job_limit
        """Bytes for each job. Default: half of the server's."""
        self._waiting = _Waiting(max(limit, LEAST_WAITING_BYTES))
        self.server = ByteBudget(limit, "the server", SERVER_SETTING, self._waiting)

    def of_job(self, name: str) -> "ByteBudget":
        """Return a new budget for a job."""
        return ByteBudget(self.job_limit, f"job {name!r}", "--max-job-inflight-bytes", self._waiting)


class _Waiting:
    """The bytes that wait for room, in all budgets of a server together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.parked = 0
        """Those of them that are parked."""


class ByteBudget:
    """Counts bytes that are held, and keeps them within a limit. Lives on one event loop.

    Room is given in the order of arrival, so that a large message is not passed by small ones for ever. A message that
    is alone always fits, whatever its size: `--max-message-bytes` bounds that.
    """

    def __init__(self, limit: int, whose: str, setting: str, waiting: _Waiting) -> None:
        self.limit = limit
        self.held = 0
        """The bytes that are held now."""
        self._whose = whose
        self._setting = setting
        self._waiting = waiting
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._parked = 0

    def try_take(self, count: int) -> bool:
        """Count `count` bytes as held if there is room and nobody waits for it; return whether."""
        if self._line or not self._has_room(count):
            return False
        self.held += count
        return True

    def take_at_once(self, count: int) -> None:
        """Count `count` bytes as held, whether or not there is room: for what is too small to wait."""
        self.held += count

    async def take(self, count: int, seconds: float) -> None:
        """Count `count` bytes as held, after waiting for room; raise `TooManyBytes` if that takes too long.

        Raise it at once if too many bytes wait already.
        """
        if self.try_take(count):
            return
        if self._waiting.bytes + count > self._waiting.limit:
            raise self._refusal(0)
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((count, room))
        self._waiting.bytes += count
        try:
            async with asyncio.timeout(seconds):
                await room
        except BaseException as problem:
            if room.done() and not room.cancelled():
                self.give_back(count)  # the room came at the moment at which the wait ended
            else:
                room.cancel()
                if (count, room) in self._line:
                    self._line.remove((count, room))
                self._admit()  # those behind may be smaller
            if isinstance(problem, TimeoutError):
                raise self._refusal(seconds) from None
            raise
        finally:
            self._waiting.bytes -= count

    def give_back(self, count: int) -> None:
        """Count `count` bytes as held no longer."""
        self.held -= count
        self._admit()

    def park(self, count: int) -> None:
        """Count bytes of this job as parked; raise `TooManyBytes` at once if it, or all jobs, have parked too many.

        They are not counted as held besides: the caller gives them back. What is parked alone always fits.
        """
        waiting = self._waiting
        of_job, of_all = waiting.limit // 4, waiting.limit // 2
        if self._parked and self._parked + count > of_job:
            raise self._refusal(0, of_job, f"{self._whose} for pushes whose turn has not come", SERVER_SETTING)
        if waiting.parked and (waiting.parked + count > of_all or waiting.bytes + count > waiting.limit):
            raise self._refusal(0, of_all, "the server for pushes whose turn has not come", SERVER_SETTING)
        self._change_parked(count)

    def unpark(self, count: int) -> None:
        """Count bytes as parked no longer."""
        self._change_parked(-count)

    def _change_parked(self, count: int) -> None:
        self._parked += count
        self._waiting.parked += count
        self._waiting.bytes += count

    def _has_room(self, count: int) -> bool:
        return not self.held or self.held + count <= self.limit

    def _admit(self) -> None:
        while self._line and self._has_room(self._line[0][0]):
            count, room = self._line.popleft()
            if not room.done():  # else its wait has just been cancelled
                self.held += count
                room.set_result(None)

    def _refusal(self, seconds: float, limit: int = 0, whose: str = "", setting: str = "") -> TooManyBytes:
        return TooManyBytes(
            limit=limit or self.limit,
            whose=whose or self._whose,
            seconds=f"{seconds:.3g}",
            setting=setting or self._setting,
        )
