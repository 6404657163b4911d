"""What a server keeps on its disk: opens the data directory, recovers its jobs, and writes their snapshots."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from optd_server.durability.data_dir import DataDir, JobFolder, processor
from optd_server.durability.files import is_full
from optd_server.durability.keepers import Disk, EventLog, Keeper, SnapshotsOnly
from optd_server.durability.log.syncer import Syncer
from optd_server.durability.problems import StorageProblem
from optd_server.durability.recovery import NothingThere, Recovered, prepare_log, recover
from optd_server.durability.snapshots.folder import SnapshotFolder, drop_old, remove_unfinished, write_snapshot
from optd_server.engine.apply import apply
from optd_server.engine.catalog import Catalog
from optd_server.engine.compute import Compute
from optd_server.engine.events import Fenced
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import REMEMBERED, WENT_BACK
from optd_server.engine.state import JobState
from optd_server.optim.backends.base import Backend
from optd_wire.errors import JobFailed, OptdError, UnknownJob

T = TypeVar("T")
log = structlog.get_logger("optd.storage")

NONE, SNAPSHOT, LOG = "none", "snapshot", "log"
COMMIT = "commit"
EXIT_DISK = 74
"""The exit status after an error of the disk: EX_IOERR of sysexits.h."""
RECOVERED_AT_ONCE = 2
"""How many jobs are recovered at the same time."""
RETRY_SECONDS = 5.0
"""How long after a failed snapshot the next one is tried."""
SKIPPED = 1 << 20
"""How many epochs and revisions are skipped when a job goes back: more than it can have had since its last snapshot."""
LOG_SHARE, LEAST_LOG = 4, 256 << 20
"""A snapshot is written early if the log behind the last one has this many times its bytes, and at least the second."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What the operator has chosen."""

    durability: str = SNAPSHOT
    fsync: str = "interval"
    fsync_interval_seconds: float = 1.0
    snapshot_seconds: float = 60.0
    snapshot_versions: int = 0
    """A snapshot is due after this many versions; 0: only time counts."""
    keep_snapshots: int = 3


class Storage:
    """The data directory of a running server. Lives on one event loop."""

    def __init__(self, data_dir: DataDir, levels: Levels) -> None:
        self._data_dir = data_dir
        self._levels = levels
        self._executor = ThreadPoolExecutor(4, "optd-disk")
        self._keepers: dict[JobFolder, Keeper] = {}
        self._made: list[Keeper] = []
        self._soon: dict[Keeper, None] = {}
        self._wake = asyncio.Event()
        self._written_at: dict[Keeper, float] = {}
        """When the last snapshot of each job was written or tried, by the monotonic clock."""
        self._failing: set[Keeper] = set()
        self._writing: asyncio.Task[None] | None = None
        self._is_ending = False
        self._is_given_up = False
        self._epochs, self._forgotten = data_dir.epochs()
        self._disk = Disk(
            data_dir=data_dir,
            executor=self._executor,
            syncer=Syncer(levels.fsync_interval_seconds, die),
            commits=levels.fsync == COMMIT,
            failed=die,
            snapshot_soon=self._snapshot_soon,
            ended=self._ended,
        )

    @classmethod
    def open(cls, path: Path, levels: Levels) -> "Storage":
        """Open a data directory, which no other server may have; raise a `StorageProblem` or OSError."""
        return cls(DataDir.open(path), levels)

    @property
    def epochs(self) -> tuple[dict[str, int], int]:
        """The last epochs of jobs that have ended; see `Catalog`."""
        return dict(self._epochs), self._forgotten

    def log_of(self, name: str, id_: str) -> Log:
        """Return the log of a job that is about to be created."""
        if self._levels.durability == NONE:
            return KeepsNothing()
        return self._keeper(name, id_)

    def _keeper(self, name: str, id_: str) -> Keeper:
        kind = EventLog if self._levels.durability == LOG else SnapshotsOnly
        made = kind(self._disk, name, id_)
        self._made = [keeper for keeper in self._made if keeper.folder is not None or keeper is made]
        self._made.append(made)
        return made

    # Recovery

    async def recover(self, catalog: Catalog, kernels: Backend, threads: int, *, skip: bool) -> None:
        """Add all jobs of the directory to a catalog.

        Raise `GivenUp`, or `StorageProblem` unless damaged jobs are to be skipped.
        """
        folders = list(self._data_dir.jobs())
        if not folders:
            return
        if self._data_dir.written_by != processor():
            log.warning(
                "this directory was written on another kind of processor: what is computed from its logs may differ in "
                "the last bits",
                there=self._data_dir.written_by,
                here=processor(),
            )
        began, room = time.monotonic(), asyncio.Semaphore(RECOVERED_AT_ONCE)
        last = {folder.name: folder for folder in folders}
        outcomes = await asyncio.gather(
            *(
                self._recover_one(folder, catalog, Compute(kernels, threads), room, skip=skip)
                for folder in last.values()
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._data_dir.note_processor()
        log.info("recovered", jobs=len(catalog), seconds=round(time.monotonic() - began, 3))

    def give_up(self) -> None:
        """Make a recovery that is going on raise `GivenUp` soon."""
        self._is_given_up = True

    async def _recover_one(
        self, folder: JobFolder, catalog: Catalog, compute: Compute, room: asyncio.Semaphore, *, skip: bool
    ) -> None:
        async with room:
            began = time.monotonic()
            try:
                recovered = await self._in_thread(self._recover, folder, compute)
                keeper = await self._take_over(folder, recovered)
                catalog.adopt(recovered.state, keeper, keeper.event)
            except NothingThere as found:
                log.info("removing what is left of a job that never came to be", job=folder.name, found=str(found))
                await self._in_thread(folder.remove)
            except (StorageProblem, OptdError) as problem:
                if not skip:
                    raise
                log.error("starting without a job", job=folder.name, problem=str(problem))
                catalog.start_without(folder.name, str(problem))
            else:
                for note in recovered.notes:
                    log.warning("recovery", job=folder.name, note=note)
                log.info(
                    "recovered a job",
                    job=folder.name,
                    version=recovered.state.version,
                    events=recovered.events,
                    seconds=round(time.monotonic() - began, 3),
                )

    def _recover(self, folder: JobFolder, compute: Compute) -> Recovered:
        def tell(job: str, events: int, version: int) -> None:
            log.info("recovering", job=job, events=events, version=version)

        recovered = recover(folder, compute, tell, is_given_up=lambda: self._is_given_up)
        prepare_log(folder, recovered)
        remove_unfinished(folder.snapshots)
        return recovered

    async def _take_over(self, folder: JobFolder, recovered: Recovered) -> Keeper:
        """Return the log of a job that was recovered. A job that may have lost events goes back, and says so."""
        keeper, state = self._keeper(folder.name, folder.id), recovered.state
        keeper.folder, keeper.event, keeper.version = folder, recovered.tail.event, state.version
        keeper.snapshot = recovered.snapshots[-1] if recovered.snapshots else None
        if folder.is_unlogged:
            why = f"{WENT_BACK}{state.version}, the last that its disk has"
            apply(state, Fenced(why, SKIPPED, SKIPPED), Compute())
            keeper.event += 1
            recovered.tail.event = keeper.event
            recovered.notes.append(f"the job is back at version {state.version}; what came after it is lost")
            await self._write(keeper, state, keeper.event)
            # A log that begins now begins behind that snapshot.
            recovered.tail.path, recovered.tail.chain = None, 0
            await self._in_thread(_remove_segments, folder)
        if isinstance(keeper, EventLog):
            keeper.go_on(folder, recovered.tail)
            await self._in_thread(folder.unmark_unlogged)
        else:
            await self._in_thread(folder.mark_unlogged)
            if any(folder.log.iterdir()):
                self._snapshot_soon(keeper)  # events are no longer written, so the log must not be gone on with
        return keeper

    # Snapshots

    def _snapshot_soon(self, keeper: Keeper) -> None:
        self._soon[keeper] = None
        self._wake.set()

    def begin_snapshots(self, catalog: Catalog) -> None:
        """Write snapshots as they become due, until `end_snapshots`."""
        self._writing = asyncio.create_task(self._write_when_due(catalog))

    async def end_snapshots(self, catalog: Catalog) -> None:
        """Write a last snapshot of each job that has changed, if snapshots were begun."""
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
        pause = max(0.05, min(1.0, self._levels.snapshot_seconds / 4))
        while not self._is_ending:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                await asyncio.sleep(0)
            self._wake.clear()
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
        since = time.monotonic() - self._written_at.setdefault(keeper, time.monotonic())
        if keeper in self._failing:
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
            async with job.captured() as (state, event):
                written = await self._write(keeper, state, event)
        except JobFailed:
            log.debug("no snapshot of a failed job", job=job.name)
            self._written_at[keeper] = time.monotonic()
            return
        except OSError as problem:
            if not is_full(problem):
                die(problem)
            tell = log.debug if keeper in self._failing else log.error
            self._failing.add(keeper)
            tell("no snapshot: the disk is full; trying again", job=job.name, folder=str(self._data_dir.path))
            self._written_at[keeper] = time.monotonic()
            return
        except OptdError as gone:
            log.debug("no snapshot", job=job.name, problem=str(gone))
            return
        if keeper in self._failing:
            self._failing.discard(keeper)
            log.info("snapshots are written again", job=job.name)
        self._written_at[keeper] = time.monotonic()
        log.debug(
            "snapshot", job=job.name, version=state.version, bytes=written, seconds=round(time.monotonic() - began, 3)
        )

    async def _write(self, keeper: Keeper, state: JobState, event: int) -> int:
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
        # The events behind the snapshot before are kept too, so that damage to the newest one costs nothing.
        keeper.drop_covered(0 if before is None else before.event)

    # The end

    def _ended(self, keeper: Keeper, state: JobState) -> None:
        self._epochs.pop(keeper.name, None)
        self._epochs[keeper.name] = state.members.last_epoch
        if len(self._epochs) > REMEMBERED:
            name = next(iter(self._epochs))
            self._forgotten = max(self._forgotten, self._epochs.pop(name))
        self._data_dir.note_epochs(self._epochs, self._forgotten)

    def close(self) -> None:
        """Sync and close all files, after the jobs have been closed. Blocks."""
        self._disk.syncer.close()
        try:
            for keeper in self._made:
                keeper.close()
        except OSError as problem:
            die(problem)
        self._executor.shutdown(wait=True)
        self._data_dir.close()

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _remove_segments(folder: JobFolder) -> None:
    for path in folder.log.iterdir():
        path.unlink()


def die(problem: BaseException) -> None:
    """End the server at once: an error of the disk means that nobody may be told that something is durable.

    A retried sync can succeed although the data is lost, so there is nothing to try again.
    """
    log.critical(
        "the disk has failed, and the server ends: nothing is acknowledged from now on",
        problem=f"{type(problem).__name__}: {problem}",
        exit_status=EXIT_DISK,
    )
    sys.stderr.flush()
    os._exit(EXIT_DISK)
