"""Writes the snapshots of running jobs as they become due, and removes what they make unnecessary."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from optd_server.durability.data_dir import JobFolder
from optd_server.durability.ending import die
from optd_server.durability.files import is_full
from optd_server.durability.keepers import Keeper
from optd_server.durability.levels import Levels
from optd_server.durability.snapshots.folder import SnapshotFolder, drop_old, write_snapshot
from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.state import JobState
from optd_wire.errors import JobFailed, OptdError, UnknownJob

T = TypeVar("T")
log = structlog.get_logger("optd.storage")

LEAST_PAUSE = 0.05
"""How long after a look at all jobs the next one comes, in seconds, if nobody has asked for a snapshot."""
RETRY_SECONDS = 5.0
"""How long after a failed snapshot the next one is tried."""
LOG_SHARE, LEAST_LOG = 8, 256 << 20
"""A snapshot is written early if the log behind the last one has this many times its bytes, and at least the second."""


class Snapshotter:
    """The snapshots of all jobs of a server. Lives on one event loop."""

    def __init__(self, levels: Levels, executor: Executor, folder: Path) -> None:
        self._folder = folder
        self._levels = levels
        self._executor = executor
        self._soon: dict[Keeper, None] = {}
        self._wake = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._is_ending = False

    def soon(self, keeper: Keeper) -> None:
        """Have a snapshot of a job written now."""
        self._soon[keeper] = None
        self._wake.set()

    def begin(self, catalog: Catalog) -> None:
        """Write snapshots as they become due, until `end`."""
        self._writing = asyncio.create_task(self._write_when_due(catalog))

    async def end(self, catalog: Catalog) -> None:
        """Write a last snapshot of each job that has changed, if `begin` was called."""
        if self._writing is None:
            return
        self._is_ending = True
        self._wake.set()
        await self._writing
        for job in tuple(catalog):
            keeper = job.log
            if isinstance(keeper, Keeper) and keeper.is_behind:
                await self._snapshot(job, keeper)
                if keeper.is_behind:
                    log.error("no last snapshot of a job", job=job.name, version=job.state.version)

    async def _write_when_due(self, catalog: Catalog) -> None:
        # Versions may come quickly, time does not.
        longest = LEAST_PAUSE if self._levels.snapshot_versions else self._levels.snapshot_seconds / 4
        pause = max(LEAST_PAUSE, min(1.0, longest))
        while not self._is_ending:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                await asyncio.sleep(0)
            self._wake.clear()
            self._soon = {keeper: None for keeper in self._soon if keeper.folder is not None}
            for job in tuple(catalog):
                keeper = job.log
                if not self._is_ending and isinstance(keeper, Keeper) and self._is_due(keeper):
                    await self._snapshot(job, keeper)

    def _is_due(self, keeper: Keeper) -> bool:
        asked = keeper in self._soon
        if not keeper.is_behind:
            self._soon.pop(keeper, None)
            if asked:
                keeper.wake()
            return False
        since = time.monotonic() - keeper.snapshot_tried
        if keeper.snapshot_fails:
            return since >= RETRY_SECONDS
        versions = keeper.version - (0 if keeper.snapshot is None else keeper.snapshot.version)
        return (
            asked
            or since >= self._levels.snapshot_seconds
            or 0 < self._levels.snapshot_versions <= versions
            or keeper.log_bytes >= max(LEAST_LOG, LOG_SHARE * keeper.snapshot_bytes)
        )

    async def _snapshot(self, job: Job, keeper: Keeper) -> None:
        """Write a snapshot of a job. If that fails, say so; it is tried again."""
        self._soon.pop(keeper, None)
        began = time.monotonic()
        try:
            async with keeper.writing:
                spare, keeper.spare = keeper.spare, None
                async with job.captured(spare) as (state, event):
                    written = await self.write(keeper, state, event)
                keeper.spare = state.groups
        except JobFailed:
            log.debug("no snapshot of a failed job", job=job.name)
            keeper.snapshot_tried = time.monotonic()
            return
        except OptdError as gone:  # first: some of these errors are an OSError too
            log.debug("no snapshot", job=job.name, problem=str(gone))
            return
        except OSError as problem:
            if not is_full(problem):
                die(problem)
            self._note_failure(keeper, "no snapshot: the disk is full; trying again")
            return
        except Exception as problem:  # noqa: BLE001 - the snapshots of other jobs must go on
            self._note_failure(keeper, "no snapshot; trying again", problem)
            return
        if keeper.snapshot_fails:
            keeper.snapshot_fails = False
            log.info("snapshots are written again", job=job.name)
        keeper.snapshot_tried = time.monotonic()
        log.debug(
            "snapshot", job=job.name, version=state.version, bytes=written, seconds=round(time.monotonic() - began, 3)
        )

    def _note_failure(self, keeper: Keeper, what: str, problem: Exception | None = None) -> None:
        tell = log.debug if keeper.snapshot_fails else log.error
        keeper.snapshot_fails = True
        keeper.snapshot_tried = time.monotonic()
        tell(what, job=keeper.name, folder=str(self._folder), exc_info=problem)

    async def write(self, keeper: Keeper, state: JobState, event: int) -> int:
        """Write a snapshot, and remove what it makes unnecessary; return the bytes that were written."""
        folder, before = keeper.folder, keeper.snapshot
        if folder is None:
            raise UnknownJob(job=keeper.name)
        made, written, size = await self._in_thread(write_snapshot, folder.snapshots, state, event, before)
        keeper.note_snapshot(made, size)
        await self._in_thread(self._drop_old, keeper, folder, before)
        return written

    def _drop_old(self, keeper: Keeper, folder: JobFolder, before: SnapshotFolder | None) -> None:
        if keeper.folder is None:
            return
        drop_old(folder.snapshots, self._levels.keep_snapshots)
        # The events behind the snapshot before are kept too, so that damage to a file that only the newest one has
        # costs nothing.
        keeper.drop_covered(0 if before is None else before.event)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
