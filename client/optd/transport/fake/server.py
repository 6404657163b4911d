"""The fake server: a table of handlers, one for each RPC that it answers, over its jobs."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from optd.transport import rpcs
from optd.transport.fake.job import MAX_MESSAGE_BYTES, FakeJob
from optd.transport.rpcs import Rpc
from optd_wire.errors import (
    DeadlineExceeded,
    JobExists,
    JobInUse,
    SharedMemoryUnavailable,
    UnexpectedStatus,
    UnknownJob,
)
from optd_wire.frames import Frame, Outgoing
from optd_wire.messages import from_message, to_message
from optd_wire.v1 import inspection_service_pb2 as inspection_pb
from optd_wire.v1 import job_service_pb2 as job_pb
from optd_wire.v1 import training_service_pb2 as training_pb
from optd_wire.v1 import worker_service_pb2 as worker_pb
from optd_wire.values import (
    GroupSpec,
    JobSpec,
    JobVersion,
    Limits,
    PullResult,
    PushHeader,
    ServerStatus,
)

Answer = tuple[Message, Sequence[Frame]]
Handler = Callable[[Any, Iterable[Outgoing]], Answer]
"""Takes a request and the frames that came with it; returns one message of an answer, and its frames."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What goes wrong with one call: `error` is raised to the client, before or after the server has handled it."""

    error: BaseException
    is_handled: bool


class FakeServer:
    """A server in memory. Safe to use from several threads; `FakeConnection` calls it.

    `clock` counts the seconds of leases. `handlers` is the table of what it answers, which tests may extend.
    """

    address = "fake:1"

    def __init__(self, *, lease_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.handled: list[tuple[str, Message]] = []
        """The calls that it has handled, by their RPCs' names, in order; refused ones count."""
        self.handlers: dict[str, Handler] = {
            rpcs.GET_SERVER_STATUS.path: self._status,
            rpcs.CREATE_JOB.path: self._create_job,
            rpcs.GET_JOB.path: self._get_job,
            rpcs.DELETE_JOB.path: self._delete_job,
            rpcs.ADD_GROUP.path: self._add_group,
            rpcs.JOIN.path: self._join,
            rpcs.RENEW_LEASE.path: self._renew_lease,
            rpcs.LEAVE.path: self._leave,
            rpcs.LIST_WORKERS.path: self._list_workers,
            rpcs.LIST_ROUNDS.path: self._list_rounds,
            rpcs.OPEN_SHARED_MEMORY.path: self._open_shared_memory,
            rpcs.STEP.path: self._step,
            rpcs.PULL.path: self._pull,
        }
        self._started = time.monotonic() - 60.0
        self._failures: dict[str, list[Failure]] = {}
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.Condition()
        """Held while a call is handled; whoever waits for a version is notified after that."""

    def restart_without_jobs(self) -> None:
        """Begins again as a server that keeps nothing."""
        self.jobs, self._started = {}, time.monotonic()

    def fail(self, rpc: Rpc[Any, Any], error: BaseException, *, is_handled: bool) -> None:
        """Makes the next call of an RPC raise `error`; with `is_handled` only its reply is lost."""
        self._failures.setdefault(rpc.path, []).append(Failure(error, is_handled))

    def handle(self, rpc: Rpc[Any, Any], request: Message, frames: Iterable[Outgoing]) -> Answer:
        """Answers one call. Raises what the server refuses, and what `fail` has arranged."""
        with self._lock:
            failures = self._failures.get(rpc.path)
            failure = failures.pop(0) if failures else None
            if failure is not None and not failure.is_handled:
                raise failure.error
            handler = self.handlers.get(rpc.path)
            if handler is None:
                problem = "the fake server does not have it"
                raise UnexpectedStatus(rpc=rpc.name, address=self.address, status="UNIMPLEMENTED", problem=problem)
            self.handled.append((rpc.name, request))
            answer = handler(request, frames)
            self._lock.notify_all()
        if failure is not None:
            raise failure.error
        return answer

    def next_version(
        self, rpc: Rpc[Any, Any], request: training_pb.WatchVersionsRequest, is_over: Callable[[], bool]
    ) -> training_pb.WatchVersionsResponse | None:
        """Waits until a job is at another version than the known one; returns None when the call is over.

        Raises `UnknownJob`, also when the job is deleted meanwhile, and what `fail` has arranged.
        """
        known = request.known_version if request.HasField("known_version") else None
        with self._lock:
            failures = self._failures.get(rpc.path)
            if failures:
                raise failures.pop(0).error
            self._lock.wait_for(lambda: is_over() or self._job(request.job).version != known)
            if is_over():
                return None
            return training_pb.WatchVersionsResponse(version=to_message(JobVersion(self.jobs[request.job].version)))

    def wake(self) -> None:
        """Makes whoever waits for a version look whether its call is over."""
        with self._lock:
            self._lock.notify_all()

    def _job(self, name: str) -> FakeJob:
        if name not in self.jobs:
            raise UnknownJob(job=name)
        return self.jobs[name]

    def _status(self, _: Message, __: Iterable[Outgoing]) -> Answer:
        limits = Limits(MAX_MESSAGE_BYTES, 100, 100, 1 << 30, 1 << 28, 1 << 27)
        status = ServerStatus("fake", 0, "SERVING", len(self.jobs), 0, 0, 0, 0, limits, "", False, "numpy", "none")
        return to_message(replace(status, uptime_ms=int(1000 * (time.monotonic() - self._started)))), ()

    def _create_job(self, request: job_pb.CreateJobRequest, frames: Iterable[Outgoing]) -> Answer:
        spec = from_message(request.spec, JobSpec)
        known = self.jobs.get(spec.name)
        if known is not None and request.HasField("replace_for") and known.id != request.creation_id:
            others = [each.name for each in known.worker_infos() if each.active and each.name != request.replace_for]
            if others:
                raise JobInUse(job=spec.name, workers=", ".join(others), seconds=f"{self._lease_seconds:g}")
            del self.jobs[spec.name]
        elif known is not None and known.id != request.creation_id:
            raise JobExists(job=spec.name, how="exists already")
        if spec.name not in self.jobs:
            job = FakeJob(spec, request.creation_id, self._lease_seconds, self._clock)
            for group in spec.groups:
                job.add(group)
            job.write(frames)
            self.jobs[spec.name] = job
        return job_pb.CreateJobResponse(job=to_message(self.jobs[spec.name].info())), ()

    def _get_job(self, request: job_pb.GetJobRequest, _: Iterable[Outgoing]) -> Answer:
        return job_pb.GetJobResponse(job=to_message(self._job(request.job).info())), ()

    def _delete_job(self, request: job_pb.DeleteJobRequest, _: Iterable[Outgoing]) -> Answer:
        self._job(request.job)
        del self.jobs[request.job]
        return job_pb.DeleteJobResponse(), ()

    def _add_group(self, request: job_pb.AddGroupRequest, frames: Iterable[Outgoing]) -> Answer:
        job, spec = self._job(request.job), from_message(request.group, GroupSpec)
        names = [group.spec.name for group in job.groups]
        if spec.name not in names:
            job.add(spec)
            job.write(frames)
            names.append(spec.name)
        return job_pb.AddGroupResponse(group=to_message(job.group_info(names.index(spec.name)))), ()

    def _join(self, request: worker_pb.JoinRequest, _: Iterable[Outgoing]) -> Answer:
        spec = from_message(request.spec, JobSpec) if request.HasField("spec") else None
        joined = self._job(request.job).join(
            request.worker,
            spec,
            request.job_id,
            request.host,
            request.pid,
            resumes_epoch=request.resumes_epoch,
            session_id=request.session_id,
        )
        return to_message(joined), ()

    def _renew_lease(self, request: worker_pb.RenewLeaseRequest, _: Iterable[Outgoing]) -> Answer:
        self._job(request.job).worker(request.worker, request.epoch)
        return worker_pb.RenewLeaseResponse(lease_ms=int(1000 * self._lease_seconds)), ()

    def _leave(self, request: worker_pb.LeaveRequest, _: Iterable[Outgoing]) -> Answer:
        self._job(request.job).leave(request.worker, request.epoch)
        return worker_pb.LeaveResponse(), ()

    def _list_workers(self, request: worker_pb.ListWorkersRequest, _: Iterable[Outgoing]) -> Answer:
        workers = [to_message(info) for info in self._job(request.job).worker_infos()]
        return worker_pb.ListWorkersResponse(workers=workers), ()

    def _list_rounds(self, request: inspection_pb.ListRoundsRequest, _: Iterable[Outgoing]) -> Answer:
        self._job(request.job)
        return inspection_pb.ListRoundsResponse(), ()  # every push is a step at once, so none waits

    def _open_shared_memory(self, _: worker_pb.OpenSharedMemoryRequest, __: Iterable[Outgoing]) -> Answer:
        raise SharedMemoryUnavailable(why="the fake server shares none")

    def _step(self, request: training_pb.StepRequest, frames: Iterable[Outgoing]) -> Answer:
        job = self._job(request.header.job)
        pushed = job.push(from_message(request.header, PushHeader), frames)
        pulled = PullResult(JobVersion(job.version), False)
        answer = training_pb.StepResponse(pushed=to_message(pushed), pulled=to_message(pulled), last=True)
        return answer, () if request.delivery.none else job.frames()

    def _pull(self, request: training_pb.PullRequest, _: Iterable[Outgoing]) -> Answer:
        job = self._job(request.job)
        if request.worker:
            job.worker(request.worker, request.epoch)
        if not self._lock.wait_for(lambda: job.version >= request.min_version, request.wait_ms / 1000):
            hint = f"; version {request.min_version} of job {request.job!r} was asked for, and it is at version"
            seconds = f"{request.wait_ms / 1000:g}"
            raise DeadlineExceeded(rpc="Pull", address=self.address, seconds=seconds, hint=f"{hint} {job.version}")
        is_known = request.HasField("known_version") and request.known_version == job.version
        result = PullResult(JobVersion(job.version), is_known)
        is_empty = is_known or request.delivery.none
        return training_pb.PullResponse(result=to_message(result)), () if is_empty else job.frames(request.parameters)
