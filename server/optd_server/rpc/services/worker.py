"""WorkerService: join and leave jobs, renew leases, share memory."""

import asyncio
from typing import Any

from optd_server.engine.catalog import Catalog
from optd_server.engine.job import Job
from optd_server.engine.membership.activity import Process
from optd_server.rpc.callers import Caller
from optd_server.rpc.handover import Handover
from optd_wire.errors import InvalidRequest, JobReplaced, SharedMemoryUnavailable, UnknownJob
from optd_wire.messages import from_message, to_message
from optd_wire.names import check_id, check_name
from optd_wire.v1 import worker_service_pb2 as pb
from optd_wire.values import JobSpec, SharedMemory

LONGEST_HOST = 255
"""Characters of a host's name that are taken."""


class WorkerService:
    """See `proto/optd/v1/worker_service.proto`."""

    def __init__(self, catalog: Catalog, handover: Handover | str) -> None:
        self._catalog = catalog
        self._handover = handover

    async def join(self, request: pb.JoinRequest, caller: Caller) -> Any:
        """Let a worker join a job, after waiting until the job is complete."""
        name, process = check_name("worker", request.worker), _process_of(request)
        job = await self._find_whole(request.job, request.wait_ms / 1000)
        spec = from_message(request.spec, JobSpec) if request.HasField("spec") else None
        if request.job_id and request.job_id != job.id:
            raise JobReplaced(job=job.name, worker=name)
        session_id = check_id("session_id", request.session_id)
        membership = await job.join(name, spec, process, resumes_epoch=request.resumes_epoch, session_id=session_id)
        if request.messages_only or isinstance(self._handover, str):
            await job.prefaulting.wait_for_messages()
        return to_message(membership)

    async def renew_lease(self, request: pb.RenewLeaseRequest, caller: Caller) -> Any:
        """Renew a lease."""
        job = self._catalog.find(request.job)
        job.workers.check(request.worker, request.epoch, _process_of(request))
        return pb.RenewLeaseResponse(version=to_message(job.version), lease_ms=self._lease_ms())

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> Any:
        """End a lease."""
        job = await self._catalog.leave(request.job, request.worker, request.epoch, returns=request.returns)
        return pb.LeaveResponse(version=to_message(job.version))

    async def open_shared_memory(self, request: pb.OpenSharedMemoryRequest, caller: Caller) -> Any:
        """Allocate memory to share with a worker; raise `SharedMemoryUnavailable` if this server shares none."""
        job = self._catalog.find(request.job)
        if isinstance(self._handover, str):
            job.workers.check(request.worker, request.epoch)
            job.sharing.decline(request.worker, self._handover)
            raise SharedMemoryUnavailable(why=self._handover)
        share = await job.open_shared_memory(request.worker, request.epoch)
        return to_message(
            SharedMemory(self._handover.path, share.ticket, job.sharing.extents(), job.sharing.gradient_extents())
        )

    async def confirm_shared_memory(self, request: pb.ConfirmSharedMemoryRequest, caller: Caller) -> Any:
        """Take the proof that a worker sees the same memory, or the reason why it does not."""
        job = self._catalog.find(request.job)
        job.workers.check(request.worker, request.epoch)
        if request.problem:
            job.sharing.decline(request.worker, request.problem)
        else:
            job.sharing.confirm(request.worker, request.token)
        return pb.ConfirmSharedMemoryResponse()

    async def list_workers(self, request: pb.ListWorkersRequest, caller: Caller) -> Any:
        """List the workers of a job."""
        job = self._catalog.find(request.job)
        workers = [to_message(info) for info in job.workers.infos()]
        now = int(self._catalog.clock.wall() * 1000)
        return pb.ListWorkersResponse(workers=workers, version=to_message(job.version), unix_ms=now)

    async def _find_whole(self, name: str, wait_seconds: float) -> Job:
        try:
            async with asyncio.timeout(wait_seconds):
                return await self._catalog.find_whole(name)
        except TimeoutError:
            raise UnknownJob(job=name[:200]) from None

    def _lease_ms(self) -> int:
        return int(self._catalog.lease_seconds * 1000)


def _process_of(request: pb.JoinRequest | pb.RenewLeaseRequest) -> Process:
    """Read what a worker tells of its process; raise `InvalidRequest` for a host that would spoil a line of the log."""
    if len(request.host) > LONGEST_HOST or not request.host.isprintable():
        raise InvalidRequest(
            problem=f"host must have at most {LONGEST_HOST} printable characters, got {request.host[:LONGEST_HOST]!r}"
        )
    return Process(request.host, request.pid)
