"""Waiting for a version of a job: what readers do who follow its steps.

A step costs one comparison, however many readers wait, unless it is a version that one of them waits for.
"""

import asyncio
from copy import copy

from optd_server.engine.fold import Fold
from optd_wire.errors import OptdError


class VersionWaits:
    """The readers of one job that wait for a version. Lives on one event loop."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._waiting: dict[asyncio.Future[None], int] = {}
        """The version that each waits for."""
        self._soonest: int | None = None
        """The lowest of these versions; None if nobody waits."""
        self._ended: OptdError | None = None
        fold.watch(self._note)

    @property
    def version(self) -> int:
        """The version that readers get now."""
        return self._fold.snapshots.current.version.version

    async def reach(self, version: int) -> None:
        """Wait until the job has come to a version.

        Raise what `close` was given, also if that comes before the wait; `JobFailed` or `JobReloads` if the job has
        failed and cannot come to the version.
        """
        while True:
            if self._ended is not None:
                raise copy(self._ended)
            if self.version >= version:
                return
            self._fold.check_not_failed()
            await self._wait(version)

    async def leave(self, version: int | None) -> None:
        """Wait until the job is at another version than this one; None is no version. Raise what `reach` does."""
        await self.reach(0 if version is None or version != self.version else version + 1)

    async def _wait(self, version: int) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = version
        self._soonest = version if self._soonest is None else min(self._soonest, version)
        try:
            await future
        finally:
            del self._waiting[future]

    def _note(self) -> None:
        if self._fold.failure:
            self._wake(list(self._waiting))
        elif self._soonest is not None and self.version >= self._soonest:
            self._wake([future for future, version in self._waiting.items() if version <= self.version])

    def _wake(self, futures: list["asyncio.Future[None]"]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)
        self._soonest = min((version for future, version in self._waiting.items() if not future.done()), default=None)

    def close(self, error: OptdError) -> None:
        """Raise `error` in whoever waits, now or later."""
        self._ended = error
        self._wake(list(self._waiting))
