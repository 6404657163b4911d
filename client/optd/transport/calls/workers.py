"""The calls of WorkerService: taking part in a job."""

from __future__ import annotations

import os
import socket
from functools import cache

from optd.transport import rpcs
from optd.transport.calls.calls import Calls
from optd.transport.requests import WorkerList
from optd_wire.messages import from_message, to_message
from optd_wire.v1 import worker_service_pb2 as worker_pb
from optd_wire.values import JobSpec, Membership, SharedMemory, WorkerInfo

LONGEST_HOST = 255
"""Characters; the server takes no more."""


@cache
def host_name() -> str:
    """The name of this host, as the server shows it to people."""
    name = socket.gethostname()
    return (name if name.isprintable() else ascii(name))[:LONGEST_HOST]


class WorkerCalls(Calls):
    """Joins and leaves jobs, keeps leases, asks for shared memory."""

    def join(
        self,
        job: str,
        worker: str,
        spec: JobSpec | None,
        wait_seconds: float,
        timeout: float,
        *,
        messages_only: bool = False,
        job_id: str = "",
        resumes_epoch: int = 0,
        session_id: str = "",
    ) -> Membership:
        """Joins a job; waits up to `wait_seconds` for one that is being created.

        `messages_only` says that this worker will share no memory. `job_id` is that of the job that the worker joined
        before; raises `JobReplaced` if the name belongs to another job now. `resumes_epoch` is the epoch that it had;
        raises `StaleEpoch` if another session than `session_id` has joined under its name since.
        """
        request = worker_pb.JoinRequest(
            job=job,
            worker=worker,
            wait_ms=int(wait_seconds * 1000),
            messages_only=messages_only,
            job_id=job_id,
            host=host_name(),
            pid=os.getpid(),
            resumes_epoch=resumes_epoch,
            session_id=session_id,
        )
        if spec is not None:
            request.spec.CopyFrom(to_message(spec))
        response = self._connection.call(rpcs.JOIN, request, timeout)
        return from_message(response, Membership)

    def renew_lease(self, job: str, worker: str, epoch: int, timeout: float) -> None:
        """Renews a lease."""
        request = worker_pb.RenewLeaseRequest(job=job, worker=worker, epoch=epoch, host=host_name(), pid=os.getpid())
        self._connection.call(rpcs.RENEW_LEASE, request, timeout)

    def leave(self, job: str, worker: str, epoch: int, timeout: float, *, returns: bool = False) -> None:
        """Ends a lease; with `returns` an ephemeral job waits for the worker to come back."""
        request = worker_pb.LeaveRequest(job=job, worker=worker, epoch=epoch, returns=returns)
        self._connection.call(rpcs.LEAVE, request, timeout)

    def open_shared_memory(self, job: str, worker: str, epoch: int, timeout: float) -> SharedMemory:
        """Asks for memory to share with the server."""
        request = worker_pb.OpenSharedMemoryRequest(job=job, worker=worker, epoch=epoch)
        return from_message(self._connection.call(rpcs.OPEN_SHARED_MEMORY, request, timeout), SharedMemory)

    def confirm_shared_memory(
        self, job: str, worker: str, epoch: int, timeout: float, *, token: bytes = b"", problem: str = ""
    ) -> None:
        """Proves with a token read from the memory that it is the server's, or tells why it cannot be used."""
        request = worker_pb.ConfirmSharedMemoryRequest(
            job=job, worker=worker, epoch=epoch, token=token, problem=problem
        )
        self._connection.call(rpcs.CONFIRM_SHARED_MEMORY, request, timeout)

    def list_workers(self, job: str, timeout: float) -> WorkerList:
        """Lists the workers of a job."""
        request = worker_pb.ListWorkersRequest(job=job)
        response = self._connection.call(rpcs.LIST_WORKERS, request, timeout)
        return WorkerList((from_message(worker, WorkerInfo) for worker in response.workers), response.unix_ms)
