"""Looking at a job with the gradient of its last step, or else of its next one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from optd_server.engine.job import Job

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a gradient that was looked at is from: the version that its step led to, and what may be wrong with it."""

    version: int | None
    note: str = ""


async def look(
    job: Job, elements: int, work: Callable[[], T], patience: Callable[[], Awaitable[None]], *, lent: bool
) -> tuple[T, Provenance]:
    """Does `work` where the gradient of the last step can be had, if need be with that of the next one.

    Waits for that no longer than `patience()` takes. Then, with `lent`, a gradient in a worker's memory will do, which
    the worker may have written over since; the note says so. Else `work` finds none.
    """
    model = job.model
    if model.version.version and model.slots.last is None and job.workers.active:
        asked = model.looks.ask(model.cost(elements), lambda: (work(), model.version.version))
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
    """Between two steps: with what lies in a slot, or in a worker's memory."""
    model = job.model
    version = model.version.version
    if model.slots.last is not None:
        return work(), Provenance(version)
    if not version:
        return work(), Provenance(None, "no step has been made yet")
    known = model.looks.lent
    if known is not None and lent:
        note = (
            f"no step came while the server waited for one: these are the numbers that the memory of worker "
            f"{known.worker!r} has now, and it may have written there since"
        )
        return model.looks.with_gradient(known.gradient, work), Provenance(version, note)
    note = "the gradient of the last step is not kept, and no step came while the server waited for one"
    return work(), Provenance(None, note)
