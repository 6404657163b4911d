"""Errors about workers and their sessions: epochs, leases, and the memory that a worker shares with the server."""

from optd_wire.errors.base import Conflict, NotFound, ResourceExhausted


class UnknownWorker(NotFound):
    """The worker has never joined the job."""

    reason = "UNKNOWN_WORKER"
    template = "worker {worker!r} has not joined job {job!r}"


class StaleEpoch(Conflict):
    """The worker's epoch is fenced, because its name was joined again or it has left."""

    reason = "STALE_EPOCH"
    template = (
        "worker {worker!r} of job {job!r} calls with epoch {epoch}, but {why}; stop this process, or give it a "
        "worker= of its own"
    )


class LeaseExpired(StaleEpoch):
    """The worker's epoch is fenced, because its lease ran out; nobody has joined under its name since."""

    reason = "LEASE_EXPIRED"
    template = "worker {worker!r} of job {job!r} calls with epoch {epoch}, but {why}; join again to go on"


class RolledBack(Conflict):
    """The worker's epoch is fenced, because the server went back to an older version of the job."""

    reason = "ROLLED_BACK"
    template = "worker {worker!r} of job {job!r} calls with epoch {epoch}, but {why}; join again, and pull"


class ForkedSession(Conflict):
    """A process uses a session that its parent opened before the fork."""

    reason = "FORKED_SESSION"
    template = "this session belongs to process {owner}, not to {process}: open a session in each process"


class SessionClosed(Conflict):
    """The session has been closed."""

    reason = "SESSION_CLOSED"
    template = "the session of job {job!r} is closed"


class WorkerInUse(Conflict):
    """A second optimizer with the same job and worker in one process; it would fence the first."""

    reason = "WORKER_IN_USE"
    template = (
        "this process has an open optimizer in job {job!r} as worker {worker!r} already: close() that one first, or "
        "pass another job= here (OPTD_JOB names the job of one optimizer)"
    )


class AlreadyRegistered(Conflict):
    """The session already has its one optimizer."""

    reason = "ALREADY_REGISTERED"
    template = "the session of job {job!r} already has an optimizer; open another session for another job"


class SharedMemoryUnavailable(ResourceExhausted):
    """The server and this worker share no memory. Frames then travel by gRPC."""

    reason = "SHARED_MEMORY_UNAVAILABLE"
    template = "no shared memory with the server: {why}"
