"""The `grpc` lane: every call over one HTTP/2 connection, numbers as frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from optd.transport.channel import Channel, messages_of
from optd.transport.step_stream import StepStream
from optd.transport.tls import TLS
from optd.transport.transport import (
    Delivery,
    GroupInspection,
    OptionHistory,
    PullRequest,
    RowsRequest,
    Sink,
    Source,
    StateSink,
    StepSink,
    Transport,
)
from optd_wire.convert import from_message, to_message
from optd_wire.encodings.registry import encoding_named
from optd_wire.errors import ConnectionLost, DeadlineExceeded, UnexpectedStatus
from optd_wire.frames import Received, decode_received
from optd_wire.rows import RowFrame, decode_rows
from optd_wire.v1 import inspection_service_pb2 as inspection_pb
from optd_wire.v1 import job_service_pb2 as job_pb
from optd_wire.v1 import state_service_pb2 as state_pb
from optd_wire.v1 import training_service_pb2 as training_pb
from optd_wire.v1 import worker_service_pb2 as worker_pb
from optd_wire.v1.tensor_pb2 import Encoding
from optd_wire.values import (
    AlgorithmInfo,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupSummary,
    GroupUpdate,
    JobInfo,
    JobOptions,
    JobReport,
    JobSpec,
    JobSummary,
    JobUpdate,
    JobVersion,
    Membership,
    OptionChange,
    ParameterReport,
    PullResult,
    PushHeader,
    PushResult,
    ReadStateResult,
    Rejection,
    ServerStatus,
    SharedMemory,
    WorkerInfo,
    WriteStateHeader,
)

M = TypeVar("M", bound=Message)


class GrpcTransport(Transport):
    """See `Transport`."""

    def __init__(self, address: str, *, token: str | None = None, tls: TLS | None = None) -> None:
        self.address = address
        self._channel = Channel(address, token=token, tls=tls)
        self._step_lock = threading.Lock()
        self._steps: StepStream | None = None

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
        if self._steps is not None:
            self._steps.close()
        self._channel.close()

    # Jobs

    def create_job(
        self,
        spec: JobSpec,
        weights: Source,
        timeout: float,
        *,
        creation_id: str = "",
        replace_for: str | None = None,
    ) -> JobInfo:
        """Creates a job with its weights."""
        first = job_pb.CreateJobRequest(spec=to_message(spec), creation_id=creation_id, replace_for=replace_for)
        response = self._channel.upload("JobService/CreateJob", first, weights(), job_pb.CreateJobResponse, timeout)
        return from_message(response.job, JobInfo)

    def get_job(self, job: str, timeout: float) -> JobInfo:
        """Describes a job."""
        request = job_pb.GetJobRequest(job=job)
        response = self._channel.ask("JobService/GetJob", request, job_pb.GetJobResponse, timeout)
        return from_message(response.job, JobInfo)

    def list_jobs(self, timeout: float) -> tuple[JobSummary, ...]:
        """Lists all jobs."""
        request = job_pb.ListJobsRequest()
        response = self._channel.ask("JobService/ListJobs", request, job_pb.ListJobsResponse, timeout)
        return tuple(from_message(job, JobSummary) for job in response.jobs)

    def delete_job(self, job: str, timeout: float) -> JobSummary:
        """Deletes a job; tells what it was."""
        request = job_pb.DeleteJobRequest(job=job)
        response = self._channel.ask("JobService/DeleteJob", request, job_pb.DeleteJobResponse, timeout)
        return from_message(response.job, JobSummary)

    def add_group(self, job: str, group: GroupSpec, weights: Source, timeout: float) -> GroupInfo:
        """Adds a group, or finds that the job has it."""
        first = job_pb.AddGroupRequest(job=job, group=to_message(group))
        response = self._channel.upload("JobService/AddGroup", first, weights(), job_pb.AddGroupResponse, timeout)
        return from_message(response.group, GroupInfo)

    def update_group(self, job: str, update: GroupUpdate, timeout: float) -> tuple[GroupOptions, JobVersion]:
        """Changes options of a group."""
        request = job_pb.UpdateGroupRequest(job=job, update=to_message(update))
        response = self._channel.ask("JobService/UpdateGroup", request, job_pb.UpdateGroupResponse, timeout)
        return from_message(response.options, GroupOptions), from_message(response.version, JobVersion)

    def update_job(self, update: JobUpdate, timeout: float) -> tuple[JobOptions, JobVersion]:
        """Changes options of a job as a whole."""
        response = self._channel.ask("JobService/UpdateJob", to_message(update), job_pb.UpdateJobResponse, timeout)
        return from_message(response.options, JobOptions), from_message(response.version, JobVersion)

    # Workers

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
    ) -> Membership:
        """Takes part in a job, once it is whole."""
        wait_ms = int(wait_seconds * 1000)
        request = worker_pb.JoinRequest(
            job=job, worker=worker, wait_ms=wait_ms, messages_only=messages_only, job_id=job_id
        )
        if spec is not None:
            request.spec.CopyFrom(to_message(spec))
        response = self._channel.ask("WorkerService/Join", request, worker_pb.JoinResponse, timeout)
        return from_message(response, Membership)

    def renew_lease(self, job: str, worker: str, epoch: int, timeout: float) -> None:
        """Keeps a lease."""
        request = worker_pb.RenewLeaseRequest(job=job, worker=worker, epoch=epoch)
        self._channel.ask("WorkerService/RenewLease", request, worker_pb.RenewLeaseResponse, timeout)

    def leave(self, job: str, worker: str, epoch: int, timeout: float) -> None:
        """Gives a lease up."""
        request = worker_pb.LeaveRequest(job=job, worker=worker, epoch=epoch)
        self._channel.ask("WorkerService/Leave", request, worker_pb.LeaveResponse, timeout)

    def open_shared_memory(self, job: str, worker: str, epoch: int, timeout: float) -> SharedMemory:
        """Asks for memory to share with the server."""
        request = worker_pb.OpenSharedMemoryRequest(job=job, worker=worker, epoch=epoch)
        answer = worker_pb.OpenSharedMemoryResponse
        return from_message(self._channel.ask("WorkerService/OpenSharedMemory", request, answer, timeout), SharedMemory)

    def confirm_shared_memory(
        self, job: str, worker: str, epoch: int, timeout: float, *, token: bytes = b"", problem: str = ""
    ) -> None:
        """Proves by a token that was read there that the memory is the same, or tells why it cannot be used."""
        request = worker_pb.ConfirmSharedMemoryRequest(
            job=job, worker=worker, epoch=epoch, token=token, problem=problem
        )
        self._channel.ask("WorkerService/ConfirmSharedMemory", request, worker_pb.ConfirmSharedMemoryResponse, timeout)

    def list_workers(self, job: str, timeout: float) -> tuple[WorkerInfo, ...]:
        """Lists the workers of a job."""
        request = worker_pb.ListWorkersRequest(job=job)
        response = self._channel.ask("WorkerService/ListWorkers", request, worker_pb.ListWorkersResponse, timeout)
        return tuple(from_message(worker, WorkerInfo) for worker in response.workers)

    # Training

    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; waits until they are part of a step."""
        first = training_pb.PushRequest(header=to_message(header))
        response = self._channel.upload("TrainingService/Push", first, gradients(), training_pb.PushResponse, timeout)
        return from_message(response.result, PushResult)

    def pull(self, request: PullRequest, weights: Sink, timeout: float) -> PullResult:
        """Reads the current weights; an empty worker reads without taking part."""
        message = training_pb.PullRequest(
            job=request.job,
            worker=request.worker,
            epoch=request.epoch,
            delivery=_delivery(request.delivery),
            groups=request.groups,
            parameters=request.parameters,
            weights=request.weights,
        )
        if request.known is not None:
            message.known_version = request.known.version
            message.known_revision = request.known.revision
        responses = self._channel.receive("TrainingService/Pull", message, training_pb.PullResponse, timeout)
        return from_message(_first_then_frames(responses, weights).result, PullResult)

    def pull_rows(self, request: RowsRequest, rows: Callable[[list[RowFrame]], None], timeout: float) -> JobVersion:
        """Reads rows of a parameter's current weights."""
        message = training_pb.PullRowsRequest(
            job=request.job,
            parameter=request.parameter,
            ids=request.ids.astype("<u8").tobytes(),
            encoding=_enum_name(request.encoding),
            weights=request.weights,
        )
        first: training_pb.PullRowsResponse | None = None
        answers = self._channel.receive(
            "TrainingService/PullRows", message, training_pb.PullRowsResponse, timeout, decode_rows
        )
        for answer, frames in answers:
            first = first or answer
            rows(frames)
        if first is None:
            raise UnexpectedStatus(rpc="PullRows", address=self.address, status="OK", problem="it sent nothing")
        return from_message(first.version, JobVersion)

    def step(
        self, header: PushHeader, gradients: Source, delivery: Delivery, weights: StepSink, timeout: float
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls in one call, on a stream that stays open. One step at a time: others wait."""
        first = training_pb.StepRequest(header=to_message(header), delivery=_delivery(delivery))
        with self._step_lock:
            stream = self._stream()
            try:
                stream.send(messages_of(first, gradients()))
                response = _first_then_frames(self._step_answers(stream, timeout), weights)
            except BaseException:
                # What is left of its answer must not be taken for that of the next step.
                stream.cancel()
                raise
        return from_message(response.pushed, PushResult), from_message(response.pulled, PullResult)

    def release(self, job: str, worker: str, epoch: int) -> None:
        """Ends the hold on shared weights. Does not wait for the server."""
        message = training_pb.StepRequest(release=training_pb.Release(job=job, worker=worker, epoch=epoch))
        with self._step_lock:
            self._stream().send(iter([message.SerializeToString()]))

    def _stream(self) -> StepStream:
        if self._steps is None or not self._steps.open:
            self._steps = self._channel.open_steps("TrainingService/Step")
        return self._steps

    def _step_answers(
        self, stream: StepStream, timeout: float
    ) -> Iterator[tuple[training_pb.StepResponse, list[Received]]]:
        """The messages that answer one step."""
        deadline = time.monotonic() + timeout
        last = False
        while not last:
            with self._channel.errors("TrainingService/Step", timeout):
                data = stream.receive(deadline - time.monotonic())
            if stream.late:
                raise DeadlineExceeded(rpc="Step", address=self.address, seconds=f"{timeout:g}", hint="")
            if data is None:
                raise ConnectionLost(address=self.address, rpc="Step", problem="the server has ended the stream")
            message, frames = decode_received(training_pb.StepResponse, data)
            last = message.last
            yield message, frames

    # State

    def read_state(
        self,
        job: str,
        fields: tuple[str, ...],
        into: StateSink,
        timeout: float,
        *,
        group: str = "",
        parameter: str = "",
    ) -> ReadStateResult:
        """Reads fields of one version: `into` is called with the result, and returns what takes the frames."""
        request = state_pb.ReadStateRequest(job=job, fields=fields, group=group, parameter=parameter)
        responses = self._channel.receive("StateService/ReadState", request, state_pb.ReadStateResponse, timeout)
        result: ReadStateResult | None = None
        for message, frames in responses:
            if result is None:
                result = from_message(message.result, ReadStateResult)
                sink = into(result)
            if frames:
                sink(frames)
        if result is None:
            raise UnexpectedStatus(rpc="ReadState", address=self.address, status="OK", problem="it sent nothing")
        return result

    def write_state(
        self, header: WriteStateHeader, numbers: Source, timeout: float
    ) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        """Replaces fields and options."""
        first = state_pb.WriteStateRequest(header=to_message(header))
        response = self._channel.upload(
            "StateService/WriteState", first, numbers(), state_pb.WriteStateResponse, timeout
        )
        options = tuple(from_message(group, GroupOptions) for group in response.options)
        return options, from_message(response.version, JobVersion)

    # Inspection

    def server_status(self, timeout: float) -> ServerStatus:
        """Describes the server."""
        request = inspection_pb.GetServerStatusRequest()
        answer = inspection_pb.GetServerStatusResponse
        return from_message(
            self._channel.ask("InspectionService/GetServerStatus", request, answer, timeout), ServerStatus
        )

    def list_algorithms(self, timeout: float) -> tuple[AlgorithmInfo, ...]:
        """Describes every algorithm."""
        request = inspection_pb.ListAlgorithmsRequest()
        answer = inspection_pb.ListAlgorithmsResponse
        response = self._channel.ask("InspectionService/ListAlgorithms", request, answer, timeout)
        return tuple(from_message(algorithm, AlgorithmInfo) for algorithm in response.algorithms)

    def list_groups(self, job: str, timeout: float) -> tuple[GroupSummary, ...]:
        """Lists the groups of a job."""
        request = inspection_pb.ListGroupsRequest(job=job)
        answer = inspection_pb.ListGroupsResponse
        response = self._channel.ask("InspectionService/ListGroups", request, answer, timeout)
        return tuple(from_message(group, GroupSummary) for group in response.groups)

    def inspect_group(
        self,
        job: str,
        group: str,
        timeout: float,
        *,
        parameter: str = "",
        statistics: bool = False,
        bins: int = 0,
    ) -> GroupInspection:
        """Describes the parameters of a group."""
        request = inspection_pb.InspectGroupRequest(
            job=job, group=group, parameter=parameter, statistics=statistics, bins=bins
        )
        answer = inspection_pb.InspectGroupResponse
        responses = [
            message for message, _ in self._channel.receive("InspectionService/InspectGroup", request, answer, timeout)
        ]
        reports = [report for response in responses for report in response.parameters]
        first = responses[0]
        return GroupInspection(
            from_message(first.group, GroupSummary),
            tuple(from_message(report, ParameterReport) for report in reports),
            first.gradient_version if first.HasField("gradient_version") else None,
            first.gradient_note,
        )

    def list_rejections(self, job: str, timeout: float) -> tuple[dict[str, int], tuple[Rejection, ...]]:
        """Tells what a job has refused: counts by reason, and the last ones."""
        request = inspection_pb.ListRejectionsRequest(job=job)
        answer = inspection_pb.ListRejectionsResponse
        response = self._channel.ask("InspectionService/ListRejections", request, answer, timeout)
        recent = tuple(from_message(rejection, Rejection) for rejection in response.recent)
        return dict(response.counts), recent

    def list_option_changes(self, job: str, group: str, timeout: float) -> OptionHistory:
        """Tells which options of a group, or of the whole job where it is "", have changed; oldest first."""
        request = inspection_pb.ListOptionChangesRequest(job=job, group=group)
        answer = inspection_pb.ListOptionChangesResponse
        response = self._channel.ask("InspectionService/ListOptionChanges", request, answer, timeout)
        changes = (from_message(change, OptionChange) for change in response.changes)
        return OptionHistory(changes, response.forgotten)

    def watch_job(self, job: str, interval_seconds: float) -> Iterator[JobReport]:
        """Reports a job whenever it has moved on, without end; closing the iterator ends the call."""
        request = inspection_pb.WatchJobRequest(job=job, interval_ms=int(interval_seconds * 1000))
        answer = inspection_pb.WatchJobResponse
        for message, _ in self._channel.receive("InspectionService/WatchJob", request, answer, None):
            yield from_message(message, JobReport)

    def health(self, timeout: float) -> bool:
        """Whether the server says of itself that it serves."""
        response = self._channel.ask(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(),
            health_pb2.HealthCheckResponse,
            timeout,
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _delivery(delivery: Delivery) -> training_pb.Delivery:
    return training_pb.Delivery(
        none=delivery.none,
        encoding=_enum_name(delivery.encoding),
        shared=delivery.shared,
        in_place=delivery.in_place,
        changed=delivery.changed,
    )


def _enum_name(encoding: str) -> str | None:
    """The name in the contract of an encoding by its name here, None where there is none."""
    return Encoding.Name(encoding_named(encoding).number) if encoding else None


def _first_then_frames(responses: Iterator[tuple[M, list[Any]]], sink: Callable[[list[Any]], None]) -> M:
    """The first message of an answer; the frames of all go to `sink`."""
    first: M | None = None
    for message, frames in responses:
        if first is None:
            first = message
        if frames:
            sink(frames)
    if first is None:
        raise UnexpectedStatus(rpc="stream", address="the server", status="OK", problem="it sent nothing")
    return first
