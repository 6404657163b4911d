"""Reads averages: copies of one version, made between two steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from optd_server.engine.job import Job
from optd_server.engine.memory import Memory
from optd_server.engine.readers.selection import Table
from optd_server.store.flat import Array, bytes_of
from optd_server.store.versions import Snapshot, WeightSet


@contextmanager
def room_for_copy(job: Job, name: str, memory: Memory) -> Iterator[None]:
    """Reserves memory for a copy of an average while the block runs.

    Raises `UnknownAverage`, `EmptyAverage` or `MemoryExceeded`.
    """
    job.state.averages.find_filled(name, job.name)
    with memory.lend(f"a copy of average {name!r} of job {job.name!r}", bytes_of(job.state.groups.layouts)):
        yield


async def copy_average(job: Job, name: str) -> Snapshot:
    """Returns the job's snapshot with a copy of an average in place of its weights."""

    def work() -> Snapshot:
        current = job.snapshots.current
        average = job.state.averages.find_filled(name, job.name)
        copied = WeightSet(average.buffers.extents)
        for target, source in zip(copied.buffers.all_slabs(), average.buffers.all_slabs(), strict=True):
            target[:] = source
        return replace(current, weights=copied)

    return await job.between_steps(job.state.groups.elements, work)


async def copy_rows(job: Job, name: str, table: Table) -> tuple[Snapshot, Array]:
    """Returns the job's snapshot, and a copy of the selected rows of an average, in the order of their ids."""

    def work() -> tuple[Snapshot, Array]:
        average = job.state.averages.find_filled(name, job.name)
        return job.snapshots.current, table.among(average.buffers.arrays[table.group])[table.ids]

    return await job.between_steps(table.ids.size * table.columns, work)
