"""The logs of jobs that are kept on disk: one that writes every event, and one that leaves it to snapshots.

Both belong to the storage of the server, which writes the snapshots. A job whose creation has been taken has a folder.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from optd_server.durability.data_dir import DataDir, JobFolder
from optd_server.durability.files import disk_full, is_full
from optd_server.durability.log.scan import Tail
from optd_server.durability.log.segment import Parts
from optd_server.durability.log.syncer import Syncer
from optd_server.durability.log.writer import LogWriter
from optd_server.durability.records import encoded_in_parts
from optd_server.durability.snapshots.folder import SnapshotFolder
from optd_server.engine.events import Created, Deleted, Event
from optd_server.engine.options.groups import Groups
from optd_server.engine.state import JobState
from optd_wire.errors import DiskFull, JobReloads


@dataclass(slots=True)
class Disk:
    """What all jobs of a server share for their files."""

    data_dir: DataDir
    executor: Executor
    syncer: Syncer
    commits: bool
    """Whether an event is acknowledged only when it is synced."""
    failed: Callable[[BaseException], None]
    """Ends the server after an error of the disk."""
    snapshot_soon: Callable[["Keeper"], None]
    """Has a snapshot of a job written now."""
    job_failed: Callable[["Keeper"], None]
    """Has a job that has failed half-way loaded again."""
    ended: Callable[["Keeper", JobState], None]
    """Notes the last epoch of a job that ends, on the disk. Blocks."""


class Keeper(ABC):
    """What both logs have in common: the job's folder, its last snapshot, and how many events it has had.

    Lives on one event loop.
    """

    keeps_events = False
    brings_back = True

    def __init__(self, disk: Disk, name: str, id_: str) -> None:
        self.name = name
        self.id = id_
        self.folder: JobFolder | None = None
        """None until the job's creation has been taken, and after its end."""
        self.snapshot: SnapshotFolder | None = None
        """The newest one."""
        self.snapshot_bytes = 0
        """How many bytes all of its files have."""
        self.event = 0
        """The number of the last event."""
        self.version = 0
        """The version after it."""
        self.writing = asyncio.Lock()
        """Held while a snapshot is written, or the job is loaded again."""
        self.spare: Groups | None = None
        """The groups of the last snapshot, whose memory the next one uses again. The job's plan has room for it."""
        self.went_back = 0
        """How often the job has gone back to an older version, after which event numbers are given again."""
        self.snapshot_tried = time.monotonic()
        """When the last snapshot was written or tried; at first, when the job was there."""
        self.snapshot_fails = False
        """Whether the last one could not be written."""
        self._disk = disk
        self._waiting: list[asyncio.Future[None]] = []
        """Who waits for the next snapshot."""

    @property
    def is_behind(self) -> bool:
        """Whether the newest snapshot lacks an event."""
        return self.folder is not None and (self.snapshot is None or self.snapshot.event < self.event)

    @property
    def log_bytes(self) -> int:
        """How many bytes of events were written since the last snapshot."""
        return 0

    @property
    def durable_version(self) -> int:
        """The newest version that survives a power cut."""
        return 0 if self.snapshot is None else self.snapshot.version

    async def append(self, event: Event, version: int, before: JobState | None) -> int:
        """Take an event; see `Log.append`."""
        if isinstance(event, Created):
            self.folder = await self._in_thread(self._make_folder)
            await self.go_on(Tail())
        elif isinstance(event, Deleted):
            assert before is not None
            async with self.writing:  # nobody else may be at work in the folder
                await self._in_thread(self._remove, before)
            self.wake()
            return self.event
        await self._take(event, version, before)
        return self.event

    async def begin(self, version: int) -> None:
        """Make the folder of a job that comes with its state, whose first snapshot counts as its first event."""
        self.folder = await self._in_thread(self._make_folder)
        self.event, self.version = 1, version

    async def abandon(self) -> None:
        """Remove the folder of a job that does not come to be; raise OSError."""
        folder, self.folder = self.folder, None
        if folder is not None:
            await self._in_thread(folder.remove)

    @abstractmethod
    async def go_on(self, tail: Tail) -> None:
        """Go on behind what the folder has, whose log ends with `tail`; raise OSError."""

    @abstractmethod
    def close_files(self) -> None:
        """Close what is open. Blocks."""

    def _make_folder(self) -> JobFolder:
        try:
            return self._disk.data_dir.make_job(self.name, self.id)
        except OSError as problem:
            if not is_full(problem):
                self._disk.failed(problem)
            raise disk_full(problem, self._disk.data_dir.path) from None

    @abstractmethod
    async def _take(self, event: Event, version: int, before: JobState | None) -> None:
        """Take an event that neither creates the job's folder nor removes it; see `Log.append`."""

    def _remove(self, state: JobState) -> None:
        """Remove the job from the disk. That is what survives of `Deleted`: nothing is left that could be replayed."""
        folder, self.folder, self.spare = self.folder, None, None
        if folder is None:
            return
        try:
            self._disk.ended(self, state)
            self.close_files()
            folder.remove()
        except OSError as problem:
            self._disk.failed(problem)

    def take_back(self, version: int) -> None:
        """See `Log.take_back`."""
        self.event, self.version = self.event - 1, version

    def note_failed(self) -> None:
        """See `Log.note_failed`."""
        self._disk.job_failed(self)

    @abstractmethod
    async def wait(self, position: int) -> None:
        """See `Log.wait`."""

    async def make_durable(self, version: int | None) -> None:
        """See `Log.make_durable`."""
        event = self.event
        await self._snapshot_that(lambda made: made.event >= event if version is None else made.version >= version)

    async def _snapshot_that(self, suffices: Callable[[SnapshotFolder], bool]) -> None:
        """Wait until the last snapshot suffices, or the job is deleted; have snapshots written until then.

        Raise `JobReloads` if the job goes back meanwhile: what was waited for no longer exists.
        """
        went_back = self.went_back
        while self.folder is not None and (self.snapshot is None or not suffices(self.snapshot)):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._disk.snapshot_soon(self)
            await future
            if self.went_back != went_back:
                raise JobReloads(job=self.name)

    def note_snapshot(self, made: SnapshotFolder, size: int) -> None:
        """Note that a snapshot has been put in place."""
        self.snapshot, self.snapshot_bytes = made, size
        self.wake()

    def wake(self) -> None:
        """Let whoever waits for a snapshot look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    @abstractmethod
    def drop_covered(self, event: int) -> None:
        """Remove from the disk what snapshots up to this event make unnecessary; raise OSError. Blocks."""

    def close(self) -> None:
        """Close the files of a job that goes on after a restart; raise OSError. Blocks."""
        self.close_files()

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk.executor, work, *arguments)


class SnapshotsOnly(Keeper):
    """Keeps no events: what comes after the last snapshot is lost if the server does not end in order.

    A job is not lost: its creation is not acknowledged before its first snapshot is written.
    """

    def close_files(self) -> None:
        """Do nothing: no file stays open."""

    async def go_on(self, tail: Tail) -> None:
        """Mark the folder: events are no longer written, so the log that it may have must not be gone on with."""
        assert self.folder is not None
        await self._in_thread(self.folder.mark_unlogged)
        if tail.event and any(self.folder.log.iterdir()):
            self._disk.snapshot_soon(self)

    async def _take(self, event: Event, version: int, before: JobState | None) -> None:
        self.event, self.version = self.event + 1, version

    async def wait(self, position: int) -> None:
        """Wait for the first snapshot; see `Log.wait`."""
        await self._snapshot_that(lambda _: True)

    def drop_covered(self, event: int) -> None:
        """Remove the events that a server with a log has written."""
        assert self.folder is not None
        for path in self.folder.log.iterdir():
            path.unlink()

    def close(self) -> None:
        """Record that the last snapshot has everything, if it has."""
        if self.folder is not None and not self.is_behind:
            self.folder.unmark_unlogged()


class EventLog(Keeper):
    """Writes every event before it is applied."""

    keeps_events = True

    def __init__(self, disk: Disk, name: str, id_: str) -> None:
        super().__init__(disk, name, id_)
        self._writer: LogWriter | None = None

    async def go_on(self, tail: Tail) -> None:
        """Go on with the log behind `tail`."""
        assert self.folder is not None
        self._writer = LogWriter(
            self.folder.log,
            tail,
            syncer=self._disk.syncer,
            executor=self._disk.executor,
            commits=self._disk.commits,
            failed=self._disk.failed,
        )
        await self._in_thread(self.folder.unmark_unlogged)

    @property
    def log_bytes(self) -> int:
        """How many bytes of events were written since the last snapshot."""
        return 0 if self._writer is None else self._writer.bytes

    @property
    def durable_version(self) -> int:
        """The newest version that survives a power cut."""
        synced = 0 if self._writer is None else self._writer.synced_version
        return max(synced, 0 if self.snapshot is None else self.snapshot.version)

    async def _take(self, event: Event, version: int, before: JobState | None) -> None:
        assert self._writer is not None
        try:
            self.event = await self._writer.append(_parts(event, before), version)
        except DiskFull:
            if before is None:
                await self.abandon()
            raise
        self.version = version

    def take_back(self, version: int) -> None:
        """See `Log.take_back`."""
        assert self._writer is not None
        self._writer.take_back(version)
        super().take_back(version)

    async def wait(self, position: int) -> None:
        """See `Log.wait`."""
        if self._writer is not None:
            await self._writer.wait(position)

    async def make_durable(self, version: int | None) -> None:
        """See `Log.make_durable`."""
        if self._writer is not None and (version is None or self.durable_version < version):
            await self._writer.wait_synced(self._writer.event)

    def note_snapshot(self, made: SnapshotFolder, size: int) -> None:
        """Note that a snapshot has been put in place."""
        super().note_snapshot(made, size)
        if self._writer is not None:
            self._writer.bytes = 0

    def drop_covered(self, event: int) -> None:
        """Remove the segments whose events are all up to this one."""
        if self._writer is not None:
            self._writer.drop_before(event)

    def close_files(self) -> None:
        """Sync and close the log; raise OSError. Blocks."""
        if self._writer is not None:
            self._writer.close()


def _parts(event: Event, before: JobState | None) -> Parts:
    """Return an event as bytes that lie where its numbers lie."""
    return [part if isinstance(part, bytes) else _plain(part) for part in encoded_in_parts(event, before)]


def _plain(part: Any) -> memoryview:
    view = memoryview(part)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
