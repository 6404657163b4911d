"""How a worker comes to take part in a job: it attaches to the one that is there, or is the first and creates it."""

import time

from optd.retry import with_retries
from optd.transport.base import Source, Transport
from optd_wire.errors import DeadlineExceeded, JobExists, Unavailable, UnknownJob
from optd_wire.values import JobSpec, Membership

# How long one call waits for a job that another worker is creating, before it asks again.
WAIT_SECONDS = 5.0


def attach_or_create(
    transport: Transport, spec: JobSpec, weights: Source, worker: str, timeout: float
) -> tuple[Membership, bool]:
    """Joins the job of `spec`, which is created with `weights` where there is none; says whether it was.

    Where another worker is creating it, waits until it is whole; should that worker die, this one creates it.
    """
    deadline = time.monotonic() + timeout
    created = False
    while time.monotonic() < deadline:
        try:
            return join(transport, spec.name, worker, spec, deadline - time.monotonic()), created
        except UnknownJob:
            try:
                transport.create_job(spec, weights, deadline - time.monotonic())
                created = True
            except (JobExists, Unavailable):
                # Somebody else was first, or the answer was lost: joining tells which.
                time.sleep(0.01)
    raise DeadlineExceeded(
        rpc="Join", address=transport.address, seconds=f"{timeout:g}", hint="; the job is still being created"
    )


def join(transport: Transport, job: str, worker: str, spec: JobSpec | None, timeout: float) -> Membership:
    """Joins a job, or joins it again; with a `spec`, the job must be what that says."""

    def attempt(left: float) -> Membership:
        return transport.join(job, worker, spec, min(WAIT_SECONDS, left / 2), left)

    return with_retries(attempt, address=transport.address, timeout=max(timeout, 0.001))
