"""Jobs that a server goes on without, because their files cannot be read."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from optd_wire.values import Async, JobSummary, JobVersion

_NOTHING = JobSummary(
    name="",
    algorithm="",
    policy=Async(),
    version=JobVersion(),
    groups=0,
    parameters=0,
    elements=0,
    workers=0,
    pushes=0,
    rejections=0,
    planned_bytes=0,
    created_unix_ms=0,
)
"""The summary of a job of which only the name is known."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A job that the server goes on without."""

    problem: str
    remove: Callable[[], Awaitable[None]]

    def summary(self, name: str) -> JobSummary:
        """Summarize the job, of which nothing is known but its name and what is wrong with it."""
        return replace(_NOTHING, name=name, failure=self.problem)
