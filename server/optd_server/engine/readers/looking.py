"""Reads a job together with the gradient of its last step, or of its next one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from optd_server.engine.job import Job
from optd_server.store.flat import Array
from optd_server.store.gradients import Gradient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a gradient that was read: the version that its step led to, and a note if it may be unreliable."""

    version: int | None
    note: str = ""


async def look(
    job: Job, elements: int, work: Callable[[], T], patience: Callable[[], Awaitable[None]], *, lent: bool
) -> tuple[T, Provenance]:
    """Runs `work` while `last_gradient` returns the gradient of the last step or, if that is not kept, of the next one.

    Waits for the next step at most as long as `patience()` takes. After that, `work` finds the gradient in a worker's
    shared memory if `lent` is true, and none otherwise. The worker may have overwritten that memory; the note says so.
    """
    if job.state.version and job.slots.last is None and job.leases.active:
        asked = job.looks.ask(job.state.groups.cost(elements), lambda: (work(), job.state.version))
        patient: asyncio.Future[None] = asyncio.ensure_future(patience())
        try:
            futures: tuple[asyncio.Future[Any], ...] = (asked, patient)
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if asked.done() and not asked.cancelled():
                result, version = asked.result()
                return result, Provenance(version)
        finally:
            asked.cancel()
            patient.cancel()
    return await job.between_steps(elements, lambda: _look_now(job, work, lent=lent))


def _look_now(job: Job, work: Callable[[], T], *, lent: bool) -> tuple[T, Provenance]:
    """Runs `work` between two steps, with the gradient in a slot or in a worker's memory."""
    version = job.state.version
    if job.slots.last is not None:
        return work(), Provenance(version)
    if not version:
        return work(), Provenance(None, "no step has been made yet")
    known = job.looks.lent
    if known is not None and lent:
        note = (
            f"no step came while the server waited for one: these are the numbers that the memory of worker "
            f"{known.worker!r} has now, and it may have written there since"
        )
        return job.looks.with_gradient(known.gradient, work), Provenance(version, note)
    note = "the gradient of the last step is not kept, and no step came while the server waited for one"
    return work(), Provenance(None, note)


def last_gradient(job: Job, group: int, segment: int) -> Array | None:
    """Returns the gradient of the last step for a segment of a group, if it is available."""
    groups, last = job.state.groups, _last(job)
    extent, place = groups.place(group, segment)
    if last is None or extent >= len(last.slabs):
        return None
    return last.slabs[extent][place.slab][place.start : place.start + groups.layouts[group].segments[segment].count]


def has_gradient(job: Job, group: int, segment: int, parameter: int) -> bool:
    """Whether the gradient of the last step is available and covers a parameter of a segment."""
    extent, place = job.state.groups.place(group, segment)
    last = _last(job)
    return last is not None and last.has(extent, place.slab, place.first + parameter)


def _last(job: Job) -> Gradient | None:
    return job.slots.last if job.looks.gradient is None else job.looks.gradient
