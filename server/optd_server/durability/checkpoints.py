"""Checkpoints: the files of a snapshot on their way to a client, and back to a job.

What comes from a client is checked like a registration: it may hold any numbers, but nothing that a client could not
have registered.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from optd_server.durability.files import disk_full, is_full, write_all
from optd_server.durability.problems import StorageProblem
from optd_server.durability.snapshots.contents import tensors_of
from optd_server.durability.snapshots.folder import (
    SnapshotFolder,
    checked_manifest,
    contents_of,
    described,
    manifest_of_files,
    snapshot_of_version,
)
from optd_server.durability.snapshots.manifest import spec_of
from optd_server.durability.storage import Storage
from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.catalog import Arrival, Catalog
from optd_server.engine.job import Job
from optd_server.engine.log import KeepsNothing, Log
from optd_server.engine.membership.members import Members
from optd_server.engine.options.resolution import find_algorithm, resolve_group, resolve_job_options
from optd_server.engine.state import JobState
from optd_server.engine.step.averages import averages_of
from optd_server.store.versions import WeightSet
from optd_wire.checkpoint_format import MANIFEST
from optd_wire.errors import NothingDurable, OptdError, WrongCheckpoint
from optd_wire.values import JobSpec, JobVersion, SnapshotInfo

PIECE = 1 << 20
"""Bytes of a file that are sent at a time."""
LONGEST_MANIFEST = 256 << 20
SPARE_BYTES = 64 << 20
"""Files may have this many bytes more than the job's memory: for the names in them."""


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
        return await asyncio.to_thread(lambda: [_info(each) for each in self._kept().snapshots_of(job)])

    async def roll_back(self, job: Job, version: int) -> None:
        """Make a job what it was at a version; raise `NothingDurable`, `VersionNotKept` or `WrongCheckpoint`."""
        try:
            await self._kept().roll_back(self._catalog, job, version)
        except StorageProblem as problem:
            raise WrongCheckpoint(problem=str(problem)) from None

    # Out

    @contextmanager
    def _opened(self, job: Job, version: int) -> Iterator[Checkpoint]:
        snapshot = snapshot_of_version(self._kept().snapshots_of(job), job.name, version)
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
        size = sum(array.nbytes for tensors in tensors_of(job.state).values() for array in tensors.values())
        with self._catalog.memory.lend(f"a copy of job {job.name!r}", size):
            async with job.captured() as (captured, event):
                state = await asyncio.to_thread(_with_own_weights, captured)
            files = dict(contents_of(state))
            names = {name: await asyncio.to_thread(described, parts) for name, parts in files.items()}
            manifest = manifest_of_files(names, state, event)
            files[MANIFEST] = [manifest]
            total = sum(each["bytes"] for each in names.values())
            yield Checkpoint(job.stamped(state.job_version), total, iter(()))
            for name, parts in files.items():
                for piece in _pieces(name, parts):
                    yield piece

    # In

    @contextmanager
    def receiving(self, manifest: bytes | bytearray, name: str, creation_id: str) -> Iterator["Incoming"]:
        """Reserve the name and the memory of a job whose files arrive; raise what a registration raises.

        If the block ends without `finish`, nothing remains. `WrongCheckpoint` says what is wrong with the manifest.
        """
        stored, files = _parsed(manifest)
        spec = _as_wrong(lambda: spec_of(stored, name))
        with self._catalog.restoring(spec, creation_id) as arrival:
            size = sum(each["bytes"] for each in files.values())
            if size > arrival.reservation.bytes + SPARE_BYTES:
                most = arrival.reservation.bytes + SPARE_BYTES
                raise WrongCheckpoint(problem=f"its files have {size} bytes, and such a job has at most {most}")
            parent = None if self._storage is None else self._storage.incoming
            if parent is not None:
                parent.mkdir(mode=0o700, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(prefix="optd-", dir=parent)
            with scratch, Incoming(Path(scratch.name), files, arrival) as incoming:
                incoming.put(MANIFEST, manifest)
                yield incoming

    def spec(self, manifest: bytes | bytearray, name: str) -> JobSpec:
        """Return what a job would be registered as; raise `WrongCheckpoint`."""
        return _as_wrong(lambda: spec_of(_parsed(manifest)[0], name))

    async def finish(self, incoming: "Incoming") -> Job:
        """Make a job of files that are complete; raise `WrongCheckpoint` or `DiskFull`."""
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
        await catalog.prepare_state(state)
        log: Log = KeepsNothing()
        position = 0
        if self._storage is not None:
            log, position = await self._storage.install(state)
        return catalog.finish_restored(arrival, state, log, position)


class Incoming:
    """The files of a checkpoint that arrive, in a folder of their own. A context manager."""

    def __init__(self, folder: Path, files: Mapping[str, Any], arrival: Arrival) -> None:
        self.arrival = arrival
        self._folder = folder
        self._left = {name: int(each["bytes"]) for name, each in files.items()}
        self._open: dict[str, int] = {}

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Write a whole file."""
        (self._folder / name).write_bytes(data)

    def write(self, name: str, data: bytes) -> None:
        """Go on with a file; raise `WrongCheckpoint` if the manifest does not have so much of it, or `DiskFull`."""
        left = self._left.get(name)
        if left is None:
            raise WrongCheckpoint(problem=f"its manifest names no file {name[:200]!r}")
        if left < len(data):
            raise WrongCheckpoint(problem=f"{name} is longer than its manifest says")
        try:
            if name not in self._open:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._open[name] = os.open(self._folder / name, flags, 0o600)
            write_all(self._open[name], [data], os.fstat(self._open[name]).st_size)
        except OSError as problem:
            if is_full(problem):
                raise disk_full(problem, self._folder.parent) from None
            raise
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


def _parsed(manifest: bytes | bytearray) -> tuple[pb.Snapshot, dict[str, Any]]:
    """Return the message of a manifest, and its files by name."""
    try:
        found = checked_manifest(manifest, Path(MANIFEST))
        files: dict[str, Any] = found["files"]
        return json_format.ParseDict(found["snapshot"], pb.Snapshot()), files
    except (StorageProblem, json_format.ParseError) as problem:
        raise WrongCheckpoint(problem=str(problem)) from None


def _as_wrong(make: Callable[[], JobSpec]) -> JobSpec:
    try:
        return make()
    except (ValueError, LookupError, OverflowError, TypeError) as problem:
        if isinstance(problem, OptdError):
            raise
        raise WrongCheckpoint(problem=str(problem)) from None


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
