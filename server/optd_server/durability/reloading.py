"""Makes running jobs of what the disk has: at the start, after a rollback, after a failed step, and of a checkpoint.

Whoever is at work in a job's folder holds its `Keeper.writing`, runs to its end whatever becomes of its caller, and
asks again, once it has the lock, whether the job is still the one that it was.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from optd_server.durability.data_dir import JobFolder
from optd_server.durability.ending import die
from optd_server.durability.files import disk_full, is_full
from optd_server.durability.keepers import Keeper
from optd_server.durability.log.scan import Tail
from optd_server.durability.problems import StorageProblem
from optd_server.durability.recovery import Recovered, prepare_log, recover
from optd_server.durability.snapshots.folder import remove_unfinished, snapshot_of_version, snapshots_in
from optd_server.durability.snapshotter import Snapshotter
from optd_server.engine.apply import apply
from optd_server.engine.catalog import Catalog
from optd_server.engine.compute import Compute
from optd_server.engine.events import Fenced
from optd_server.engine.job import Job
from optd_server.engine.log import Log
from optd_server.engine.membership.members import WENT_BACK
from optd_server.engine.state import JobState
from optd_server.engine.uncancelled import to_the_end
from optd_wire.errors import OptdError, UnknownJob

T = TypeVar("T")
log = structlog.get_logger("optd.storage")

THE_LAST = "the last that its disk has: only --durability log --fsync commit keeps every step"
SKIPPED = 1 << 20
"""How many epochs and revisions are skipped when a job goes back: more than it can have had since its last snapshot."""


class Reloading:
    """Loads the jobs of a data directory. Lives on one event loop."""

    def __init__(self, snapshotter: Snapshotter, executor: Executor, path: Path) -> None:
        self.catalog: Catalog | None = None
        """The jobs that are brought back if they fail; None until the server serves."""
        self.is_given_up = False
        """Whether a recovery that is going on is to raise `GivenUp` soon."""
        self._snapshotter = snapshotter
        self._executor = executor
        self._path = path
        self._bringing_back: set[asyncio.Task[None]] = set()

    async def load(self, keeper: Keeper, compute: Compute) -> Recovered:
        """Return a job as its folder has it, and let its log go on.

        A job that may have lost events goes back, and says so. Raise `GivenUp`, `NothingThere`, a `StorageProblem` or
        OSError.
        """
        folder = keeper.folder
        assert folder is not None
        recovered = await self._in_thread(self._recover, folder, compute)
        state = recovered.state
        keeper.event, keeper.version = recovered.tail.event, state.version
        keeper.snapshot = recovered.snapshots[-1] if recovered.snapshots else None
        if folder.is_unlogged:
            recovered.notes.append(f"the job is back at version {state.version}; what came after it is lost")
            await self._go_back(keeper, state, f"{state.version}, {THE_LAST}")
        else:
            await keeper.go_on(recovered.tail)
        return recovered

    def _recover(self, folder: JobFolder, compute: Compute) -> Recovered:
        def tell(job: str, events: int, version: int) -> None:
            log.info("recovering", job=job, events=events, version=version)

        recovered = recover(folder, compute, tell, is_given_up=lambda: self.is_given_up)
        prepare_log(folder, recovered)
        remove_unfinished(folder.snapshots)
        return recovered

    async def _go_back(self, keeper: Keeper, state: JobState, where: str) -> None:
        """Let a job go on from an older state. Its workers are fenced; `where` tells them where the job is.

        That state becomes a new snapshot, and the log begins anew behind it.
        """
        assert keeper.folder is not None
        apply(state, Fenced(WENT_BACK + where, SKIPPED, SKIPPED), Compute())
        keeper.event, keeper.version, keeper.went_back = keeper.event + 1, state.version, keeper.went_back + 1
        await self._snapshotter.write(keeper, state, keeper.event)
        await self._in_thread(_remove_segments, keeper.folder)
        await keeper.go_on(Tail(event=keeper.event, version=state.version))

    async def install(self, keeper: Keeper, state: JobState) -> int:
        """Put a job on the disk that comes with its state; return the position of its last event.

        Raise `DiskFull`, and leave nothing behind. Must run to its end.
        """
        try:
            async with keeper.writing:
                await keeper.begin(state.version)
                await self._snapshotter.write(keeper, state, keeper.event)
                await keeper.go_on(Tail(event=keeper.event, version=state.version))
        except OptdError:
            await keeper.abandon()
            raise
        except OSError as problem:
            if not is_full(problem):
                die(problem)
            await keeper.abandon()
            raise disk_full(problem, self._path) from None
        except BaseException:
            await keeper.abandon()
            raise
        return keeper.event

    async def roll_back(self, catalog: Catalog, job: Job, version: int) -> None:
        """Make a job what it was at a version, even if the caller goes away meanwhile.

        Raise `UnknownJob` or `VersionNotKept`, a `StorageProblem` if that snapshot is damaged, or `DiskFull`; the job
        is then as it was.
        """
        await to_the_end(self._roll_back(catalog, job, version))

    async def _roll_back(self, catalog: Catalog, job: Job, version: int) -> None:
        keeper = job.log
        assert isinstance(keeper, Keeper)
        full: list[OSError] = []
        async with keeper.writing:
            folder = keeper.folder
            if folder is None:
                raise UnknownJob(job=job.name)
            kept = await self._in_thread(snapshots_in, folder.snapshots)
            snapshot = snapshot_of_version(kept, job.name, version)
            await self._in_thread(snapshot.check)  # a damaged one must not cost the job that there is

            async def load() -> tuple[JobState, Log, int]:
                await self._in_thread(keeper.close_files)
                state, _ = await self._in_thread(snapshot.load)
                try:
                    await self._go_back(keeper, state, f"{version}, to which it was rolled back")
                except OSError as problem:
                    if not is_full(problem):
                        die(problem)
                    full.append(problem)
                    state = (await self.load(keeper, _compute(catalog))).state
                return state, keeper, keeper.event

            await catalog.reload(job, load, keeper.abandon)
        if full:
            raise disk_full(full[0], self._path)
        log.info("rolled back", job=job.name, version=version)

    def bring_back_soon(self, keeper: Keeper) -> None:
        """Load a job that has failed half-way from what the disk has of it."""
        task = asyncio.get_running_loop().create_task(self._bring_back(keeper))
        self._bringing_back.add(task)
        task.add_done_callback(self._bringing_back.discard)

    async def _bring_back(self, keeper: Keeper) -> None:
        catalog = self.catalog
        job = None if catalog is None else next((each for each in catalog if each.log is keeper), None)
        if catalog is None or job is None:
            return  # it has been deleted
        notes: list[str] = []

        async def load() -> tuple[JobState, Log, int]:
            await self._in_thread(keeper.close_files)
            recovered = await self.load(keeper, _compute(catalog))
            notes.extend(recovered.notes)
            return recovered.state, keeper, keeper.event

        try:
            async with keeper.writing:
                await catalog.reload(job, load, keeper.abandon)
        except UnknownJob:
            return  # it has been deleted meanwhile
        except (StorageProblem, OptdError) as problem:
            log.error("a job that has failed could not be loaded again", job=job.name, problem=str(problem))
            return
        except OSError as problem:
            if not is_full(problem):
                die(problem)
            log.error("a job that has failed could not be loaded again: the disk is full", job=job.name)
            return
        for note in notes:
            log.warning("recovery", job=job.name, note=note)
        log.warning("a job that has failed is back", job=job.name, version=keeper.version)

    async def end(self) -> None:
        """Wait until all jobs that are being loaded are there."""
        while self._bringing_back:
            await asyncio.wait(self._bringing_back)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _compute(catalog: Catalog) -> Compute:
    return Compute(catalog.offload.kernels, catalog.offload.threads)


def _remove_segments(folder: JobFolder) -> None:
    for path in folder.log.iterdir():
        path.unlink()
