"""What a server keeps on its disk: opens the data directory, recovers its jobs, and writes their snapshots."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from optd_server.durability.data_dir import DataDir, JobFolder, processor
from optd_server.durability.ending import die
from optd_server.durability.files import disk_full, is_full
from optd_server.durability.keepers import Disk, EventLog, Keeper, SnapshotsOnly
from optd_server.durability.levels import COMMIT, LOG, Levels
from optd_server.durability.log.scan import Tail
from optd_server.durability.log.syncer import Syncer
from optd_server.durability.problems import StorageProblem
from optd_server.durability.recovery import NothingThere, Recovered, prepare_log, recover
from optd_server.durability.snapshots.folder import (
    SnapshotFolder,
    remove_unfinished,
    snapshot_of_version,
    snapshots_in,
)
from optd_server.durability.snapshotter import Snapshotter
from optd_server.engine.apply import apply
from optd_server.engine.catalog import Catalog
from optd_server.engine.compute import Compute
from optd_server.engine.events import Fenced
from optd_server.engine.job import Job
from optd_server.engine.log import Log
from optd_server.engine.membership.members import REMEMBERED, WENT_BACK
from optd_server.engine.state import JobState
from optd_server.optim.backends.base import Backend
from optd_wire.errors import OptdError

T = TypeVar("T")
log = structlog.get_logger("optd.storage")

RECOVERED_AT_ONCE = 2
"""How many jobs are recovered at the same time."""
SKIPPED = 1 << 20
"""How many epochs and revisions are skipped when a job goes back: more than it can have had since its last snapshot."""


class Storage:
    """The data directory of a running server. Lives on one event loop."""

    def __init__(self, data_dir: DataDir, levels: Levels) -> None:
        self._data_dir = data_dir
        self._levels = levels
        self._executor = ThreadPoolExecutor(4, "optd-disk")
        self._made: list[Keeper] = []
        self._is_given_up = False
        self._catalog: Catalog | None = None
        self._bringing_back: set[asyncio.Task[None]] = set()
        self._epochs, self._forgotten = data_dir.epochs()
        self.snapshotter = Snapshotter(levels, self._executor, data_dir.path)
        self._disk = Disk(
            data_dir=data_dir,
            executor=self._executor,
            syncer=Syncer(levels.fsync_interval_seconds, die),
            commits=levels.fsync == COMMIT,
            failed=die,
            snapshot_soon=self.snapshotter.soon,
            job_failed=self._bring_back_soon,
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
                keeper = self._keeper(folder.name, folder.id)
                await self._take_over(keeper, folder, recovered)
                await catalog.prepare_state(recovered.state)
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

    async def _take_over(self, keeper: Keeper, folder: JobFolder, recovered: Recovered) -> None:
        """Go on with a job that was recovered. One that may have lost events goes back, and says so."""
        state = recovered.state
        keeper.folder, keeper.event, keeper.version = folder, recovered.tail.event, state.version
        keeper.snapshot = recovered.snapshots[-1] if recovered.snapshots else None
        if folder.is_unlogged:
            recovered.notes.append(f"the job is back at version {state.version}; what came after it is lost")
            await self._go_back(keeper, state, f"{state.version}, the last that its disk has")
        else:
            await keeper.go_on(recovered.tail)

    async def _go_back(self, keeper: Keeper, state: JobState, where: str) -> None:
        """Let a job go on from an older state. Its workers are fenced; `where` tells them where the job is.

        That state becomes a new snapshot, and the log begins anew behind it.
        """
        assert keeper.folder is not None
        apply(state, Fenced(WENT_BACK + where, SKIPPED, SKIPPED), Compute())
        keeper.event, keeper.version = keeper.event + 1, state.version
        await self.snapshotter.write(keeper, state, keeper.event)
        await self._in_thread(_remove_segments, keeper.folder)
        await keeper.go_on(Tail(event=keeper.event, version=state.version))

    # Jobs that are loaded while the server runs

    async def install(self, state: JobState) -> tuple[Log, int]:
        """Put a job on the disk that comes with its state; return its log, and the position of its last event.

        Raise `DiskFull`, and leave nothing behind.
        """
        keeper = self._keeper(state.name, state.id)
        try:
            await keeper.begin(state.version)
            await self.snapshotter.write(keeper, state, keeper.event)
            await keeper.go_on(Tail(event=keeper.event, version=state.version))
        except OSError as problem:
            if not is_full(problem):
                die(problem)
            await keeper.abandon()
            raise disk_full(problem, self._data_dir.path) from None
        return keeper, keeper.event

    def snapshots_of(self, job: Job) -> list[SnapshotFolder]:
        """Return the snapshots of a job, the oldest first. Blocks."""
        keeper = job.log
        assert isinstance(keeper, Keeper)
        return [] if keeper.folder is None else snapshots_in(keeper.folder.snapshots)

    async def roll_back(self, catalog: Catalog, job: Job, version: int) -> None:
        """Make a job what it was at a version; raise `VersionNotKept`, or a `StorageProblem` if that is damaged."""
        keeper = job.log
        assert isinstance(keeper, Keeper)
        async with keeper.writing:
            kept = await self._in_thread(self.snapshots_of, job)
            snapshot = snapshot_of_version(kept, job.name, version)
            await self._in_thread(snapshot.check)  # a damaged one must not cost the job that there is

            async def load() -> tuple[JobState, Log, int]:
                await self._in_thread(keeper.close_files)
                state, _ = await self._in_thread(snapshot.load)
                await self._go_back(keeper, state, f"{version}, to which it was rolled back")
                return state, keeper, keeper.event

            await catalog.reload(job, load)
        log.info("rolled back", job=job.name, version=version)

    def _bring_back_soon(self, keeper: Keeper) -> None:
        task = asyncio.get_running_loop().create_task(self._bring_back(keeper))
        self._bringing_back.add(task)
        task.add_done_callback(self._bringing_back.discard)

    async def _bring_back(self, keeper: Keeper) -> None:
        """Load a job that has failed half-way from what the disk has of it."""
        catalog, folder = self._catalog, keeper.folder
        job = None if catalog is None else next((each for each in catalog if each.log is keeper), None)
        if catalog is None or job is None or folder is None:
            return  # it has been deleted
        compute = Compute(catalog.offload.kernels, catalog.offload.threads)
        notes: list[str] = []

        async def load() -> tuple[JobState, Log, int]:
            await self._in_thread(keeper.close_files)
            recovered = await self._in_thread(self._recover, folder, compute)
            await self._take_over(keeper, folder, recovered)
            notes.extend(recovered.notes)
            return recovered.state, keeper, keeper.event

        try:
            async with keeper.writing:
                await catalog.reload(job, load)
        except (StorageProblem, OptdError, OSError) as problem:
            log.error("a job that has failed could not be loaded again", job=job.name, problem=str(problem))
            return
        for note in notes:
            log.warning("recovery", job=job.name, note=note)
        log.warning("a job that has failed is back", job=job.name, version=keeper.version)

    # Snapshots

    def begin_snapshots(self, catalog: Catalog) -> None:
        """Write snapshots as they become due, until `end_snapshots`."""
        self._catalog = catalog
        self.snapshotter.begin(catalog)

    async def end_snapshots(self, catalog: Catalog) -> None:
        """Write a last snapshot of each job that has changed, if snapshots were begun."""
        if self._bringing_back:
            await asyncio.wait(self._bringing_back)
        await self.snapshotter.end(catalog)

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
