"""What a server keeps on its disk: opens the data directory, recovers its jobs, and writes their snapshots."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from optd_server.durability.data_dir import DataDir, JobFolder, job_at, processor
from optd_server.durability.ending import die
from optd_server.durability.keepers import Disk, EventLog, Keeper, SnapshotsOnly
from optd_server.durability.levels import COMMIT, LOG, Levels
from optd_server.durability.log.syncer import Syncer
from optd_server.durability.problems import StorageProblem
from optd_server.durability.recovery import NothingThere
from optd_server.durability.reloading import Reloading
from optd_server.durability.snapshotter import Snapshotter
from optd_server.engine.catalog import Catalog
from optd_server.engine.compute import Compute
from optd_server.engine.log import Log
from optd_server.engine.membership.members import REMEMBERED
from optd_server.engine.state import JobState
from optd_server.optim.backends.base import Backend
from optd_wire.errors import OptdError

T = TypeVar("T")
log = structlog.get_logger("optd.storage")

RECOVERED_AT_ONCE = 2
"""How many jobs are recovered at the same time."""


class Storage:
    """The data directory of a running server. Lives on one event loop."""

    def __init__(self, data_dir: DataDir, levels: Levels) -> None:
        self._data_dir = data_dir
        self._levels = levels
        self._executor = ThreadPoolExecutor(4, "optd-disk")
        self._made: list[Keeper] = []
        self._noting_epochs = threading.Lock()
        self._epochs, self._forgotten = data_dir.epochs()
        self.snapshotter = Snapshotter(levels, self._executor, data_dir.path)
        self.reloading = Reloading(self.snapshotter, self._executor, data_dir.path)
        self._disk = Disk(
            data_dir=data_dir,
            executor=self._executor,
            syncer=Syncer(levels.fsync_interval_seconds, die),
            commits=levels.fsync == COMMIT,
            failed=die,
            snapshot_soon=self.snapshotter.soon,
            job_failed=self.reloading.bring_back_soon,
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

    @property
    def incoming(self) -> Path:
        """The folder for files that are on their way here. What is in it when a server starts is removed."""
        return self._data_dir.incoming

    def log_of(self, name: str, id_: str) -> Log:
        """Return the log of a job that is about to be created."""
        return self._keeper(name, id_)

    async def install(self, state: JobState) -> tuple[Log, int]:
        """Put a job on the disk that comes with its state; return its log, and the position of its last event.

        Raise `DiskFull`, and leave nothing behind. Must run to its end.
        """
        keeper = self._keeper(state.name, state.id)
        return keeper, await self.reloading.install(keeper, state)

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
        folders = await self._in_thread(self._folders, skip)
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
        outcomes = await asyncio.gather(
            *(self._recover_one(folder, catalog, Compute(kernels, threads), room, skip=skip) for folder in folders),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._data_dir.note_processor()
        log.info("recovered", jobs=len(catalog), seconds=round(time.monotonic() - began, 3))

    def _folders(self, skip: bool) -> list[JobFolder]:
        """Return the folders of all jobs, of each name the last one; remove those of jobs that were being deleted."""
        found: dict[str, JobFolder] = {}
        for path in self._data_dir.paths():
            try:
                folder = job_at(path)
            except StorageProblem as problem:
                if not skip:
                    raise
                log.error("starting without a job whose name cannot be read", path=str(path), problem=str(problem))
                continue
            if folder.name in found:
                before = found[folder.name]
                log.warning(
                    "removing a job that was being deleted: there is a later one of its name", path=str(before.path)
                )
                before.remove()
            found[folder.name] = folder
        return list(found.values())

    def give_up(self) -> None:
        """Make a recovery that is going on raise `GivenUp` soon."""
        self.reloading.is_given_up = True

    async def _recover_one(
        self, folder: JobFolder, catalog: Catalog, compute: Compute, room: asyncio.Semaphore, *, skip: bool
    ) -> None:
        async with room:
            began = time.monotonic()
            try:
                keeper = self._keeper(folder.name, folder.id)
                keeper.folder = folder
                recovered = await self.reloading.load(keeper, compute)
                await catalog.prepare_state(recovered.state)
                catalog.adopt(recovered.state, keeper, keeper.event)
            except NothingThere as found:
                log.info("removing what is left of a job that never came to be", job=folder.name, found=str(found))
                await self._in_thread(folder.remove)
            except (StorageProblem, OptdError) as problem:
                if not skip:
                    raise
                log.error("starting without a job", job=folder.name, problem=str(problem))
                catalog.start_without(folder.name, str(problem), lambda: self._in_thread(folder.remove))
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

    # Snapshots

    def begin_snapshots(self, catalog: Catalog) -> None:
        """Write snapshots as they become due, until `end_snapshots`."""
        self.reloading.catalog = catalog
        self.snapshotter.begin(catalog)

    async def end_snapshots(self, catalog: Catalog) -> None:
        """Write a last snapshot of each job that has changed, if snapshots were begun."""
        await self.reloading.end()
        await self.snapshotter.end(catalog)

    # The end

    def _ended(self, keeper: Keeper, state: JobState) -> None:
        with self._noting_epochs:
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
