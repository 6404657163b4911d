"""How a worker joins a job: it attaches to one that exists, or creates it."""

import secrets
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from optd.session.retry import with_retries
from optd.transport.numbers import Source
from optd.transport.server_calls import ServerCalls
from optd_wire.errors import DeadlineExceeded, JobExists, Unavailable, UnknownJob
from optd_wire.values import JobSpec, Membership

IfExists = Literal["attach", "fail", "replace"]
"""What to do if a job of this name exists: join it, raise `JobExists`, or delete it and create a new one."""

# How long one call waits for a job that another worker is creating.
WAIT_SECONDS = 5.0


class Rejoined(NamedTuple):
    """How a worker has joined again after the server went back to an older version of the job."""

    membership: Membership
    lost: int
    """How many of its acknowledged pushes the server no longer has."""
    applied: bool
    """Whether the server has the push whose fate was unknown."""


def take_part(
    transport: ServerCalls,
    spec: JobSpec,
    weights: Source,
    worker: str,
    timeout: float,
    if_exists: IfExists,
    *,
    session_id: str,
    messages_only: bool = False,
) -> tuple[Membership, bool]:
    """Joins the job of `spec`, and creates it with `weights` if necessary; returns whether it was created here.

    `messages_only` says that the worker will share no memory with the server; `session_id` is its session's. Blocks for
    up to `timeout` seconds.
    Raises `JobExists` or `JobInUse` if `if_exists` demands a new job and there cannot be one.
    """

    def join_now(left: float) -> Membership:
        return join(transport, spec.name, worker, spec, left, messages_only=messages_only, session_id=session_id)

    if if_exists == "attach":
        return _attach_or_create(transport, spec, weights, timeout, join_now)
    began = time.monotonic()
    job_id = _create(transport, spec, weights, timeout, replace_for=worker if if_exists == "replace" else None)
    membership = join_now(timeout - (time.monotonic() - began))
    if membership.job.id != job_id:
        how = "was replaced by another worker at the same time: only one can, and the others attach"
        raise JobExists(job=spec.name, how=how)
    return membership, True


def _create(transport: ServerCalls, spec: JobSpec, weights: Source, timeout: float, *, replace_for: str | None) -> str:
    """Creates a job once, however often the call is repeated; returns the job's id."""
    creation_id = secrets.token_hex(16)

    def attempt(left: float) -> None:
        transport.create_job(spec, weights, left, creation_id=creation_id, replace_for=replace_for)

    try:
        with_retries(attempt, address=transport.address, timeout=timeout)
    except JobExists as error:
        advice = "if_exists='attach' takes part in it, if_exists='replace' deletes it first"
        raise JobExists(job=spec.name, how=f"{error.values['how']}; {advice}") from None
    return creation_id


def _attach_or_create(
    transport: ServerCalls, spec: JobSpec, weights: Source, timeout: float, join_now: Callable[[float], Membership]
) -> tuple[Membership, bool]:
    """Waits for a job that another worker is creating; creates it if there is none, or if that worker dies."""
    deadline = time.monotonic() + timeout
    creation_id = secrets.token_hex(16)
    while time.monotonic() < deadline:
        try:
            membership = join_now(deadline - time.monotonic())
            # Another worker may have replaced the job that was created here.
            return membership, membership.job.id == creation_id
        except UnknownJob:
            try:
                transport.create_job(spec, weights, deadline - time.monotonic(), creation_id=creation_id)
            except (JobExists, Unavailable):
                # Another worker was first, or the answer was lost: joining tells which.
                time.sleep(0.01)
    raise DeadlineExceeded(
        rpc="Join", address=transport.address, seconds=f"{timeout:g}", hint="; the job is still being created"
    )


def join(
    transport: ServerCalls,
    job: str,
    worker: str,
    spec: JobSpec | None,
    timeout: float,
    *,
    session_id: str,
    messages_only: bool = False,
    job_id: str = "",
    resumes_epoch: int = 0,
) -> Membership:
    """Joins a job, which must match `spec` if there is one; with `job_id` joins that very job again.

    With `resumes_epoch`, its last epoch, a worker joins only if no other session has taken its name since.
    """

    def attempt(left: float) -> Membership:
        wait = min(WAIT_SECONDS, left / 2)
        return transport.join(
            job,
            worker,
            spec,
            wait,
            left,
            messages_only=messages_only,
            job_id=job_id,
            resumes_epoch=resumes_epoch,
            session_id=session_id,
        )

    return with_retries(attempt, address=transport.address, timeout=max(timeout, 0.001))
