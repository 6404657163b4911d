"""Checkpoints: the files of a snapshot on their way to a client, and back to a job.

What comes from a client is checked like a registration: it may hold any numbers, but nothing that a client could not
have registered.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from optd_server.durability.files import disk_full, is_full, write_all
from optd_server.durability.keepers import Keeper
from optd_server.durability.problems import StorageProblem
from optd_server.durability.snapshots.folder import (
    SnapshotFolder,
    checked_manifest,
    contents_of,
    described,
    manifest_of_files,
    snapshot_of_version,
    snapshots_in,
)
from optd_server.durability.snapshots.manifest import MOST_STEPS, spec_of
from optd_server.durability.storage import Storage
from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.arrivals import Arrival
from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import Members
from optd_server.engine.options.history import KEPT
from optd_server.engine.options.resolution import find_algorithm, resolve_group, resolve_job_options
from optd_server.engine.state import JobState
from optd_server.engine.step.averages import averages_of
from optd_server.engine.uncancelled import to_the_end
from optd_server.store.versions import WeightSet
from optd_wire.checkpoint_format import MANIFEST
from optd_wire.errors import NothingDurable, OptdError, WrongCheckpoint
from optd_wire.values import JobSpec, JobVersion, SnapshotInfo

PIECE = 1 << 20
"""Bytes of a file that are sent at a time."""
LONGEST_MANIFEST = 64 << 20
PARSED_SHARE = 32
"""How many bytes of memory a byte of a manifest takes at most while it is parsed."""
SPARE_BYTES = 1 << 20
"""Files may have this many bytes more than the job's memory and the manifest, which has all names that are in them."""


class Piece(NamedTuple):
    """A part of a file; the pieces of a file follow one another."""

    file: str
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a checkpoint that is being read."""

    version: JobVersion
    bytes: int
    """Of all files but the manifest."""
    pieces: Iterator[Piece]
    """The manifest comes last. To be read in a thread."""


class Checkpoints:
    """Reads and restores the jobs of a server, with or without a data directory."""

    def __init__(self, catalog: Catalog, storage: Storage | None) -> None:
        self._catalog = catalog
        self._storage = storage

    def _kept(self) -> Storage:
        if self._storage is None:
            raise NothingDurable
        return self._storage

    async def snapshots(self, job: Job) -> list[SnapshotInfo]:
        """Return the snapshots on the disk, the oldest first; raise `NothingDurable`."""
        self._kept()
        return await asyncio.to_thread(lambda: [_info(each) for each in _snapshots_of(job)])

    async def roll_back(self, job: Job, version: int) -> None:
        """Make a job what it was at a version; raise `NothingDurable`, `VersionNotKept` or `WrongCheckpoint`."""
        try:
            await self._kept().reloading.roll_back(self._catalog, job, version)
        except StorageProblem as problem:
            raise WrongCheckpoint(problem=str(problem)) from None

    # Out

    @contextmanager
    def _opened(self, job: Job, version: int) -> Iterator[Checkpoint]:
        self._kept()
        snapshot = snapshot_of_version(_snapshots_of(job), job.name, version)
        try:
            files = snapshot.files()
            with ExitStack() as opened:
                # Open files stay readable when the snapshot is removed meanwhile.
                named = {
                    name: opened.enter_context((snapshot.path / name).open("rb", buffering=0))
                    for name in (*files, MANIFEST)
                }
                size = sum(each["bytes"] for each in files.values())
                yield Checkpoint(job.stamped(JobVersion(version)), size, _pieces_of(named))
        except (StorageProblem, FileNotFoundError) as problem:
            raise WrongCheckpoint(problem=str(problem)) from None

    async def read(self, job: Job, version: int | None) -> AsyncGenerator[Checkpoint | Piece, None]:
        """Yield a checkpoint, and then its pieces: a version on the disk, or the job as it is now.

        Steps go on meanwhile, however slow the reader is. Raise `NothingDurable`, `VersionNotKept` or `MemoryExceeded`.
        """
        if version is not None:
            with ExitStack() as opened:
                checkpoint = await asyncio.to_thread(opened.enter_context, self._opened(job, version))
                yield checkpoint
                while (piece := await asyncio.to_thread(next, checkpoint.pieces, None)) is not None:
                    yield piece
            return
        with self._catalog.memory.lend(f"a copy of job {job.name!r}", job.memory.copied):
            async with job.captured() as (captured, event):
                state = await asyncio.to_thread(_with_own_weights, captured)
            files, total = await asyncio.to_thread(_files_of, state, event)
            yield Checkpoint(job.stamped(state.job_version), total, iter(()))
            for name, parts in files.items():
                for piece in _pieces(name, parts):
                    yield piece

    # In

    async def parse(self, manifest: bytes | bytearray, name: str) -> "Manifest":
        """Return what a manifest describes, as a job of this name; raise `WrongCheckpoint` or `MemoryExceeded`."""
        with self._catalog.memory.lend("the manifest of a checkpoint", PARSED_SHARE * len(manifest)):
            return await asyncio.to_thread(_parsed, manifest, name)

    @asynccontextmanager
    async def receiving(self, manifest: "Manifest", creation_id: str) -> AsyncIterator["Incoming"]:
        """Reserve the name and the memory of a job whose files arrive; raise what a registration raises.

        If the block ends without `finish`, nothing remains.
        """
        with self._catalog.restoring(manifest.spec, creation_id) as arrival:
            size = sum(each["bytes"] for each in manifest.files.values())
            most = arrival.reservation.bytes + len(manifest.text) + SPARE_BYTES
            if size > most:
                raise WrongCheckpoint(problem=f"its files have {size} bytes, and such a job has at most {most}")
            parent = None if self._storage is None else self._storage.incoming
            incoming = await asyncio.to_thread(Incoming.begin, parent, manifest, arrival)
            try:
                yield incoming
            finally:
                await to_the_end(asyncio.to_thread(incoming.remove))

    async def finish(self, incoming: "Incoming") -> Job:
        """Make a job of files that are complete, even if the caller goes away meanwhile.

        Raise `WrongCheckpoint`, `MemoryExceeded` or `DiskFull`.
        """
        return await to_the_end(self._finish(incoming))

    async def _finish(self, incoming: "Incoming") -> Job:
        arrival, catalog = incoming.arrival, self._catalog
        state = await asyncio.to_thread(incoming.load)
        state = replace(
            state,
            name=arrival.spec.name,
            id=arrival.creation_id,
            created_wall=catalog.clock.wall(),
            ephemeral=False,
            # Its workers were those of another server, or have ended.
            members=Members(forgotten_epoch=catalog.first_epoch(arrival.spec.name)),
        )
        catalog.make_room(arrival, state)
        await catalog.prepare_state(state)
        log: Log = KeepsNothing()
        position = 0
        if self._storage is not None:
            log, position = await self._storage.install(state)
        return catalog.finish_restored(arrival, state, log, position)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a checkpoint that arrives."""

    text: bytes
    files: dict[str, Any]
    """The bytes and the checksum of each other file, by name."""
    spec: JobSpec
    """What the job would be registered as."""


class Incoming:
    """The files of a checkpoint that arrive, in a folder of their own. All methods block."""

    def __init__(self, folder: Path, files: Mapping[str, Any], arrival: Arrival) -> None:
        self.arrival = arrival
        self._folder = folder
        self._left = {name: int(each["bytes"]) for name, each in files.items()}
        self._open: dict[str, int] = {}

    @classmethod
    def begin(cls, parent: Path | None, manifest: Manifest, arrival: Arrival) -> "Incoming":
        """Make the folder, in `parent` or where the system keeps temporary files; raise `DiskFull` or OSError."""
        if parent is not None:
            parent.mkdir(mode=0o700, exist_ok=True)
        made = cls(Path(tempfile.mkdtemp(prefix="optd-", dir=parent)), manifest.files, arrival)
        try:
            with made._noticing_full():
                (made._folder / MANIFEST).write_bytes(manifest.text)
        except BaseException:
            made.remove()
            raise
        return made

    def remove(self) -> None:
        """Close and remove all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        shutil.rmtree(self._folder)

    @contextmanager
    def _noticing_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if is_full(problem):
                raise disk_full(problem, self._folder.parent) from None
            raise

    def write(self, name: str, data: bytes) -> None:
        """Go on with a file; raise `WrongCheckpoint` if the manifest does not have so much of it, or `DiskFull`."""
        left = self._left.get(name)
        if left is None:
            raise WrongCheckpoint(problem=f"its manifest names no file {name[:200]!r}")
        if left < len(data):
            raise WrongCheckpoint(problem=f"{name} is longer than its manifest says")
        with self._noticing_full():
            if name not in self._open:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._open[name] = os.open(self._folder / name, flags, 0o600)
            write_all(self._open[name], [data], os.fstat(self._open[name]).st_size)
        self._left[name] = left - len(data)

    def load(self) -> JobState:
        """Return the state that the files hold; raise `WrongCheckpoint`. Blocks."""
        for name, left in self._left.items():
            if left:
                raise WrongCheckpoint(problem=f"{name} lacks {left} bytes")
        try:
            state, _ = SnapshotFolder(self._folder, 0, 0).load()
        except StorageProblem as problem:
            raise WrongCheckpoint(problem=str(problem).replace(f"{self._folder}/", "")) from None
        _check(state, self.arrival.spec)
        return state


def _parsed(text: bytes | bytearray, name: str) -> Manifest:
    try:
        found = checked_manifest(text, Path(MANIFEST))
        stored = json_format.ParseDict(found["snapshot"], pb.Snapshot())
        _check_stored(stored)
        return Manifest(bytes(text), found["files"], spec_of(stored, name))
    except OptdError:
        raise
    except (StorageProblem, json_format.ParseError, ValueError, LookupError, OverflowError, TypeError) as problem:
        raise WrongCheckpoint(problem=str(problem)) from None


def _check_stored(stored: pb.Snapshot) -> None:
    """Raise ValueError if a manifest has numbers or names that no job of a server could have."""
    for field in ("version", "revision", "written_revision", "applied_pushes"):
        if not 0 <= getattr(stored, field) < MOST_STEPS:
            raise ValueError(f"{field} must be in [0, 2**62)")
    known = {group.options.group: set(group.options.options) for group in stored.groups}
    for group in stored.groups:
        if not set(group.last_changed) <= known[group.options.group]:
            raise ValueError(f"group {group.options.group!r} tells of changes of options that it lacks")
    known[""] = set(stored.options.options)
    for each in (*stored.history.recent, *stored.history.last):
        if each.change.option not in known.get(each.change.group, ()):
            raise ValueError("its history tells of groups or options that it lacks")
    if len(stored.history.recent) > KEPT or not set(stored.history.counts) <= known.keys():
        raise ValueError("its history is longer than that of a job, or tells of groups that it lacks")


def _check(state: JobState, spec: JobSpec) -> None:
    """Raise `WrongCheckpoint` if a state has what no job of its registration could have."""
    algorithm = find_algorithm(spec.algorithm)
    for group in spec.groups:
        if resolve_group(group, algorithm, spec.defaults) != dict(group.options):
            raise WrongCheckpoint(problem=f"options of group {group.name!r} are missing")
    known = set(averages_of(resolve_job_options(spec.options)))
    if set(state.averages.kept) != known:
        raise WrongCheckpoint(problem=f"it has averages {sorted(state.averages.kept)}, and its options ask for {known}")
    if not 0 < state.created_with <= len(spec.groups):
        raise WrongCheckpoint(problem=f"it was created with {state.created_with} groups, and has {len(spec.groups)}")


def _with_own_weights(state: JobState) -> JobState:
    return replace(state, weights=WeightSet.holding(state.weights.buffers.copy()))


def _files_of(state: JobState, event: int) -> tuple[dict[str, list[memoryview | bytes]], int]:
    """Return all files of a checkpoint, the manifest last, and the bytes of the others."""
    files = dict(contents_of(state))
    known = {name: described(parts) for name, parts in files.items()}
    files[MANIFEST] = [manifest_of_files(known, state, event)]
    return files, sum(each["bytes"] for each in known.values())


def _snapshots_of(job: Job) -> list[SnapshotFolder]:
    keeper = job.log
    folder = keeper.folder if isinstance(keeper, Keeper) else None
    return [] if folder is None else snapshots_in(folder.snapshots)


def _pieces_of(files: Mapping[str, RawIOBase]) -> Iterator[Piece]:
    for name, file in files.items():
        while data := file.read(PIECE):
            yield Piece(name, data)


def _pieces(name: str, parts: list[memoryview | bytes]) -> Iterator[Piece]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, view.nbytes, PIECE):
            yield Piece(name, view[start : start + PIECE])


def _info(snapshot: SnapshotFolder) -> SnapshotInfo:
    files = snapshot.files()
    written = (snapshot.path / MANIFEST).stat().st_mtime
    return SnapshotInfo(snapshot.version, int(written * 1000), sum(each["bytes"] for each in files.values()))
