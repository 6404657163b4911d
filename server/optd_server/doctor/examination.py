"""What is in a data directory, and what a server would recover from it. Changes no file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from optd_server.durability.data_dir import FORMAT, DataDir, JobFolder, job_at
from optd_server.durability.log.scan import Tail, first_event_of, segment_paths, segment_records
from optd_server.durability.problems import Damage, NewerFormat, StorageProblem
from optd_server.durability.recovery import NothingThere, Recovered, recover
from optd_server.durability.snapshots.folder import SnapshotFolder, snapshots_in, unfinished
from optd_server.engine.compute import Compute
from optd_wire.errors import OptdError

T = TypeVar("T")


class State(StrEnum):
    """What a server would find a job to be, the best first."""

    GOOD = "good"
    TORN = "torn"
    """The server ended while it wrote an event that nobody was told of. A server cuts it off when it starts."""
    EMPTY = "empty"
    """The server ended before anything was durable. A server removes what is left when it starts."""
    DAMAGED = "damaged"
    """Something is damaged, and a server recovers the job nevertheless."""
    LOST = "lost"
    """A server cannot recover the job, and does not start unless it may skip the job."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Damage, and where it is."""

    path: str
    offset: int
    problem: str


@dataclass(frozen=True, slots=True)
class Torn:
    """An unfinished record at the end of a log."""

    path: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A snapshot on disk."""

    path: str
    version: int
    event: int
    """The last event that it contains."""
    bytes: int
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment of a log on disk. Events and versions are those of the records that can be read."""

    path: str
    first_event: int
    last_event: int
    """One less than the first if there is none."""
    version: int
    """The version after the last event."""
    bytes: int
    torn_bytes: int
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job on disk."""

    job: str
    path: str
    state: State
    version: int | None
    """The version that a server would recover; None if it recovers none."""
    event: int | None
    """The last event then."""
    snapshot_version: int | None
    """The version of the snapshot that it begins with; None if it has the log alone."""
    replayed: int
    """How many events it applies behind the snapshot."""
    unlogged: bool
    """Whether steps behind that version are lost: the last server wrote no log, and did not end in order."""
    why: str
    """Why nothing would be recovered; empty if something is."""
    torn: Torn | None
    snapshots: tuple[FoundSnapshot, ...]
    segments: tuple[FoundSegment, ...]
    leftovers: tuple[str, ...]
    """What a server has left that ended while it wrote or removed a snapshot. A server removes it when it starts."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A data directory."""

    path: str
    format: int
    processor: str
    """The kind of processor that wrote it."""
    jobs: tuple[FoundJob, ...]
    problems: tuple[Problem, ...]
    """Damage outside of snapshots and logs."""
    leftovers: tuple[str, ...]
    """What a server has left that ended while it made or removed a job. A server removes it when it starts."""

    @property
    def is_damaged(self) -> bool:
        """Whether anything is."""
        return bool(self.problems) or any(job.state in (State.DAMAGED, State.LOST) for job in self.jobs)


def examine(data_dir: DataDir) -> Examination:
    """Look at all files of a data directory, and recover each job in memory; raise `NewerFormat` or OSError. Blocks."""
    problems: list[Problem] = []
    _attempt(data_dir.epochs, problems, data_dir.path)
    folders = [_attempt(partial(job_at, path), problems, path) for path in data_dir.paths()]
    return Examination(
        path=str(data_dir.path),
        format=FORMAT,
        processor=data_dir.written_by,
        jobs=tuple(_job(folder) for folder in folders if folder is not None),
        problems=tuple(problems),
        leftovers=tuple(map(str, data_dir.leftovers())),
    )


def _attempt(work: Callable[[], T], problems: list[Problem], path: Path) -> T | None:
    """Return the result of `work`; None if it finds damage or cannot read a file, which is noted then."""
    try:
        return work()
    except NewerFormat:
        raise
    except Damage as damage:
        problems.append(Problem(str(damage.path), damage.offset, damage.problem))
    except OSError as problem:
        why = (problem.strerror or str(problem)).lower()
        problems.append(Problem(str(problem.filename or path), 0, f"it cannot be read: {why}"))
    return None


def _job(folder: JobFolder) -> FoundJob:
    snapshots = tuple(_snapshot(each) for each in snapshots_in(folder.snapshots))
    segments = _segments(folder)
    recovered, why = _recovered(folder)
    torn = None
    if recovered is not None and recovered.tail.torn_bytes:
        torn = Torn(str(recovered.tail.path), recovered.tail.end, recovered.tail.torn_bytes)
    newest = recovered.snapshots[-1] if recovered is not None and recovered.snapshots else None
    return FoundJob(
        job=folder.name,
        path=str(folder.path),
        state=_state(recovered, why, is_damaged=_is_damaged(snapshots) or _is_damaged(segments)),
        version=None if recovered is None else recovered.state.version,
        event=None if recovered is None else recovered.tail.event,
        snapshot_version=None if newest is None else newest.version,
        replayed=0 if recovered is None else recovered.events,
        unlogged=folder.is_unlogged,
        why=why,
        torn=torn,
        snapshots=snapshots,
        segments=segments,
        leftovers=tuple(map(str, unfinished(folder.snapshots))),
    )


def _is_damaged(files: Iterable[FoundSnapshot | FoundSegment]) -> bool:
    return any(each.problem is not None for each in files)


def _state(recovered: Recovered | None, why: str, *, is_damaged: bool) -> State:
    if recovered is None:
        return State.LOST if why else State.EMPTY
    if is_damaged:
        return State.DAMAGED
    return State.TORN if recovered.tail.torn_bytes else State.GOOD


def _recovered(folder: JobFolder) -> tuple[Recovered | None, str]:
    """Return what a server would recover, or why nothing; neither if there was never anything durable."""
    try:
        return recover(folder, Compute()), ""
    except NewerFormat:
        raise
    except NothingThere:
        return None, ""
    except (StorageProblem, OptdError, OSError) as problem:
        return None, str(problem)


def _snapshot(found: SnapshotFolder) -> FoundSnapshot:
    problems: list[Problem] = []
    _attempt(found.check, problems, found.path)
    size = sum(path.stat().st_size for path in found.path.iterdir() if path.is_file())
    return FoundSnapshot(str(found.path), found.version, found.event, size, problems[0] if problems else None)


def _segments(folder: JobFolder) -> tuple[FoundSegment, ...]:
    """Return all segments. One behind a damaged one is read as if it were the first: it may still be whole."""
    found = []
    paths, tail = segment_paths(folder.log), Tail()
    for number, path in enumerate(paths):
        first = first_event_of(path)
        problems: list[Problem] = []

        def read(path: Path = path, number: int = number, tail: Tail = tail) -> None:
            for _ in segment_records(path, tail, is_last=number == len(paths) - 1):
                pass

        _attempt(read, problems, path)
        last = tail.event if tail.path == path and tail.end else first - 1
        version = tail.version if last >= first else int(path.stem.partition("-")[0])
        found.append(
            FoundSegment(
                path=str(path),
                first_event=first,
                last_event=last,
                version=version,
                bytes=path.stat().st_size,
                torn_bytes=tail.torn_bytes if tail.path == path else 0,
                problem=problems[0] if problems else None,
            )
        )
        tail = Tail() if problems else tail
    return tuple(found)
