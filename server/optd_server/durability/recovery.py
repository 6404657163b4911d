"""Makes the state of a job from its newest good snapshot and the events behind it.

Events go through the same `apply` as in a running job, so the bits are the same too, on the same kind of processor and
the same build.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from optd_server.durability.data_dir import JobFolder
from optd_server.durability.log.scan import Record, Tail, chain_before, first_event_of, records, segment_paths
from optd_server.durability.problems import Damage, StorageProblem
from optd_server.durability.records import decoded
from optd_server.durability.snapshots.folder import SnapshotFolder, snapshots_in
from optd_server.engine.apply import apply, create
from optd_server.engine.compute import Compute
from optd_server.engine.events import Created, Event
from optd_server.engine.state import JobState

PROGRESS_SECONDS = 2.0

Tell = Callable[[str, int, int], None]
"""Tells of progress: the job, the events that were applied, and the version that they have led to."""


@dataclass(slots=True)
class Recovered:
    """A job as its folder has it."""

    state: JobState
    tail: Tail
    snapshots: list[SnapshotFolder]
    """The good ones, the oldest first."""
    events: int = 0
    """How many events were applied behind the snapshot."""
    notes: list[str] = field(default_factory=list)
    """What its owner should know."""


class NothingThere(StorageProblem):
    """The server ended before anything of a job was durable, so nobody was told that there is such a job."""


class GivenUp(Exception):
    """The server is to end before it has recovered its jobs."""


def recover(
    folder: JobFolder,
    compute: Compute,
    tell: Tell = lambda *_: None,
    *,
    is_given_up: Callable[[], bool] = lambda: False,
) -> Recovered:
    """Return the state of a job; change no file. Blocks. `is_given_up` is asked before every event.

    Raise `GivenUp`, `Damage` with file and offset, `NewerFormat`, `NothingThere`, or another `StorageProblem`.
    """
    tail, notes = Tail(), []
    good, state, damage = _newest_good(folder)
    after = good[-1].event if good else 0
    count, told = 0, time.monotonic()
    spare = None
    for record in records(folder.log, tail, after=after):
        if is_given_up():
            raise GivenUp
        event = _event(record, state)
        if state is None:
            if not isinstance(event, Created):
                raise Damage(record.path, record.offset, f"its first event is {type(event).__name__}, not Created")
            state = create(event)
        else:
            current = state.weights
            compute.into = spare if spare is not None and spare.buffers.extents == state.groups.extents else None
            _apply(state, event, compute, record)
            spare = current if state.weights is not current else spare
        count += 1
        if time.monotonic() - told >= PROGRESS_SECONDS:
            tell(folder.name, count, state.version)
            told = time.monotonic()
    compute.into = None
    if tail.event < after:
        tail = Tail(event=after, version=0 if state is None else state.version)
    if damage is not None:
        if tail.event < damage[0].event:
            raise damage[1]
        notes.append(f"{damage[1]}; an older snapshot and the log have everything, so nothing is lost")
    if state is None:
        raise NothingThere(f"{folder.path} holds no job yet")
    if tail.torn_bytes:
        notes.append(
            f"{tail.path} ends in {tail.torn_bytes} bytes of an unfinished record behind event {tail.event}: they are "
            f"cut off at byte {tail.end}; no event in them was synced"
        )
    return Recovered(state, tail, good, count, notes)


def _newest_good(
    folder: JobFolder,
) -> tuple[list[SnapshotFolder], JobState | None, tuple[SnapshotFolder, Damage] | None]:
    """Return the snapshots up to the newest good one, its state, and the newest one if that is damaged."""
    known = snapshots_in(folder.snapshots)
    damage = None
    while known:
        try:
            return known, known[-1].load()[0], damage
        except Damage as problem:
            damage = damage or (known[-1], problem)
            known = known[:-1]
    return [], None, damage


def _event(record: Record, state: JobState | None) -> Event:
    try:
        return decoded(bytes(record.data), state)
    except Exception as problem:
        why = f"event {record.event} cannot be decoded: {problem}"
        raise Damage(record.path, record.offset, why) from problem


def _apply(state: JobState, event: Event, compute: Compute, record: Record) -> None:
    try:
        apply(state, event, compute)
    except Exception as problem:
        what = f"event {record.event} ({type(event).__name__}) in {record.path} at byte {record.offset}"
        raise StorageProblem(f"{what} cannot be applied: {type(problem).__name__}: {problem}") from problem
    if state.version != record.version:
        what = f"event {record.event} leads to version {state.version}, and was written as {record.version}"
        raise Damage(record.path, record.offset, what)


def prepare_log(folder: JobFolder, recovered: Recovered) -> None:
    """Make a log ready to go on: cut off its torn tail, and drop what a snapshot contains; raise OSError. Blocks.

    A last segment without events is dropped too: the next one has its name.
    """
    tail = recovered.tail
    if tail.path is None:
        # Either there is no segment, or a snapshot contains all events of all segments.
        for path in segment_paths(folder.log):
            path.unlink()
        return
    if tail.end == 0:
        tail.path.unlink()
        return
    if tail.event < first_event_of(tail.path):
        tail.chain = chain_before(tail.path)
        tail.path.unlink()
        return
    cut(tail.path, tail.end)  # also if it has no torn tail: whatever is there may never have been synced


def cut(segment: Path, end: int) -> None:
    """Cut off what is behind the last record of a segment; raise OSError. Blocks."""
    descriptor = os.open(segment, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
