"""The contract as any language has it: generated stubs and plain protobuf, nothing of our client or our encoder."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import optd_wire.v1
from optd_wire.v1 import (
    checkpoint_service_pb2_grpc,
    inspection_service_pb2,
    inspection_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    option_pb2,
    state_service_pb2,
    state_service_pb2_grpc,
    tensor_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

Arrays = dict[str, np.ndarray]
Frames = Sequence[tensor_pb2.Frame]

DTYPE_NUMBERS = {
    "float32": tensor_pb2.DTYPE_FLOAT32,
    "float64": tensor_pb2.DTYPE_FLOAT64,
    "float16": tensor_pb2.DTYPE_FLOAT16,
    "bfloat16": tensor_pb2.DTYPE_BFLOAT16,
}
DTYPES = {number: np.dtype(getattr(ml_dtypes, name, name)) for name, number in DTYPE_NUMBERS.items()}
ENCODINGS = {dtype: tensor_pb2.Encoding.Value(f"ENCODING_{dtype.name.upper()}") for dtype in DTYPES.values()}
ENCODED = {encoding: dtype for dtype, encoding in ENCODINGS.items()}

SECONDS = 10.0


def files() -> list[Any]:
    """The generated modules of the contract."""
    modules = pkgutil.iter_modules(optd_wire.v1.__path__, "optd_wire.v1.")
    return [importlib.import_module(module.name) for module in modules if module.name.endswith("_pb2")]


def methods(*modules: Any) -> list[MethodDescriptor]:
    """Every RPC of the services that some generated modules hold."""
    services = chain.from_iterable(module.DESCRIPTOR.services_by_name.values() for module in modules)
    return [method for service in services for method in service.methods]


OWN_RPCS = methods(*files())
ALL_RPCS = OWN_RPCS + methods(health_pb2, reflection_pb2)


# Messages


def option(value: Any) -> option_pb2.OptionValue:
    match value:
        case None:
            return option_pb2.OptionValue()
        case bool():
            return option_pb2.OptionValue(flag=value)
        case int():
            return option_pb2.OptionValue(integer=value)
        case float():
            return option_pb2.OptionValue(number=value)
        case str():
            return option_pb2.OptionValue(text=value)
        case _:
            return option_pb2.OptionValue(numbers=option_pb2.NumberList(numbers=value))


def options(values: Mapping[str, Any]) -> dict[str, option_pb2.OptionValue]:
    return {name: option(value) for name, value in values.items()}


def group(name: str, parameters: Mapping[str, tuple[tuple[int, ...], str]], **overrides: Any) -> job_pb2.GroupSpec:
    """A group of parameters given as {name: (shape, dtype)}."""
    return job_pb2.GroupSpec(
        name=name,
        options=options(overrides),
        parameters=[
            job_pb2.ParameterSpec(name=parameter, shape=shape, dtype=DTYPE_NUMBERS[dtype])
            for parameter, (shape, dtype) in parameters.items()
        ],
    )


def job_spec(
    name: str, groups: Iterable[job_pb2.GroupSpec], *, algorithm: str = "sgd", workers: int = 0, **defaults: Any
) -> job_pb2.JobSpec:
    """A job; `workers` makes it a synchronous one."""
    spec = job_pb2.JobSpec(name=name, algorithm=algorithm, defaults=options(defaults), groups=groups)
    if workers:
        spec.policy.sync.workers = workers
    return spec


def frame(values: Any, group: int = 0, offset: int = 0, field: str = "") -> tensor_pb2.Frame:
    values = np.asarray(values)
    return tensor_pb2.Frame(
        group=group,
        offset=offset,
        count=values.size,
        encoding=ENCODINGS[values.dtype],
        field=field,
        payload=values.astype(values.dtype.newbyteorder("<")).tobytes(),
    )


def header(
    job: str, worker: str, epoch: int, sequence: int, *, base: int = 0, **more: Any
) -> training_service_pb2.PushHeader:
    return training_service_pb2.PushHeader(
        job=job, worker=worker, epoch=epoch, sequence=sequence, base_version=base, **more
    )


def arrays(info: job_pb2.JobInfo, frames: Frames) -> Arrays:
    """Frames put together to arrays by parameter name; NaN where no frame has an element."""
    found: Arrays = {}
    for holder in info.groups:
        for parameter in holder.parameters:
            dtype = DTYPES[parameter.dtype]
            flat = np.full(int(np.prod(parameter.shape, dtype=int)), np.nan, dtype)
            for sent in frames:
                if sent.group != holder.index or ENCODED[sent.encoding] != dtype:
                    continue
                low = max(parameter.offset, sent.offset)
                high = min(parameter.offset + flat.size, sent.offset + sent.count)
                if low < high:
                    values = np.frombuffer(sent.payload, dtype)
                    flat[low - parameter.offset : high - parameter.offset] = values[
                        low - sent.offset : high - sent.offset
                    ]
            found[parameter.name] = flat.reshape(tuple(parameter.shape))
    return found


def ending(requests: Sequence[Any]) -> Iterator[Any]:
    """The messages of a whole upload: the last one says that it is the last."""
    yield from requests[:-1]
    last = type(requests[-1])()
    last.CopyFrom(requests[-1])
    last.last = True
    yield last


def push_requests(head: training_service_pb2.PushHeader, frames: Frames) -> list[training_service_pb2.PushRequest]:
    """A push: the header in the first message, each frame in one of its own."""
    requests = [training_service_pb2.PushRequest(header=head)]
    return requests + [training_service_pb2.PushRequest(frames=[sent]) for sent in frames]


# Calls


class Plain:
    """A connection, and the stub of every service on it."""

    def __init__(self, address: str, *, options: Sequence[tuple[str, int]] = ()) -> None:
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.address = address
        # A connection of its own: gRPC otherwise shares one among the channels of a process.
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(address, [*unlimited, *own, *options])
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.workers = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.training = training_service_pb2_grpc.TrainingServiceStub(self.channel)
        self.state = state_service_pb2_grpc.StateServiceStub(self.channel)
        self.checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceStub(self.channel)
        self.inspection = inspection_service_pb2_grpc.InspectionServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(self.channel)

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def create(self, spec: job_pb2.JobSpec, frames: Frames) -> job_pb2.JobInfo:
        """Creates a job: the spec in the first message, each frame in one of its own."""
        requests = [job_service_pb2.CreateJobRequest(spec=spec)]
        requests += [job_service_pb2.CreateJobRequest(frames=[sent]) for sent in frames]
        return self.jobs.CreateJob(ending(requests), timeout=SECONDS).job

    def info(self, job: str) -> job_pb2.JobInfo:
        return self.jobs.GetJob(job_service_pb2.GetJobRequest(job=job), timeout=SECONDS).job

    def job_names(self) -> list[str]:
        return [job.name for job in self.summaries()]

    def summaries(self) -> list[job_service_pb2.JobSummary]:
        return list(self.jobs.ListJobs(job_service_pb2.ListJobsRequest(), timeout=SECONDS).jobs)

    def summary(self, job: str) -> job_service_pb2.JobSummary:
        return next(summary for summary in self.summaries() if summary.name == job)

    def status(self) -> inspection_service_pb2.GetServerStatusResponse:
        return self.inspection.GetServerStatus(inspection_service_pb2.GetServerStatusRequest(), timeout=SECONDS)

    def delete(self, job: str) -> job_service_pb2.DeleteJobResponse:
        return self.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(job=job), timeout=SECONDS)

    def join(self, job: str, worker: str = "w0", **more: Any) -> int:
        """Joins; returns the epoch."""
        request = worker_service_pb2.JoinRequest(job=job, worker=worker, **more)
        return self.workers.Join(request, timeout=SECONDS).epoch

    def leave(self, job: str, worker: str, epoch: int) -> None:
        self.workers.Leave(worker_service_pb2.LeaveRequest(job=job, worker=worker, epoch=epoch), timeout=SECONDS)

    def list_workers(self, job: str) -> dict[str, worker_service_pb2.WorkerInfo]:
        request = worker_service_pb2.ListWorkersRequest(job=job)
        return {worker.name: worker for worker in self.workers.ListWorkers(request, timeout=SECONDS).workers}

    def update_group(self, job: str, group: str, **changes: Any) -> job_service_pb2.UpdateGroupResponse:
        update = option_pb2.GroupUpdate(group=group, options=options(changes))
        return self.jobs.UpdateGroup(job_service_pb2.UpdateGroupRequest(job=job, update=update), timeout=SECONDS)

    def push(
        self, head: training_service_pb2.PushHeader, frames: Frames, timeout: float = SECONDS
    ) -> training_service_pb2.PushResult:
        """Pushes: the header in the first message, each frame in one of its own."""
        return self.training.Push(ending(push_requests(head, frames)), timeout=timeout).result

    def step(
        self, head: training_service_pb2.PushHeader, frames: Frames, timeout: float = SECONDS
    ) -> tuple[training_service_pb2.PushResult, list[tensor_pb2.Frame]]:
        """Steps once, with all frames in one message; returns the weights as they came."""
        request = training_service_pb2.StepRequest(header=head, frames=frames, last=True)
        responses = list(self.training.Step(iter([request]), timeout=timeout))
        assert [response.last for response in responses] == [False] * (len(responses) - 1) + [True]
        return responses[0].pushed, [sent for response in responses for sent in response.frames]

    def pull(self, job: str) -> tuple[training_service_pb2.PullResult, list[tensor_pb2.Frame]]:
        """Pulls without taking part."""
        responses = list(self.training.Pull(training_service_pb2.PullRequest(job=job), timeout=SECONDS))
        return responses[0].result, [sent for response in responses for sent in response.frames]

    def weights(self, job: str) -> Arrays:
        info = self.info(job)
        return arrays(info, self.pull(job)[1])

    def read_state(self, job: str, *fields: str) -> tuple[state_service_pb2.ReadStateResult, list[tensor_pb2.Frame]]:
        request = state_service_pb2.ReadStateRequest(job=job, fields=fields)
        responses = list(self.state.ReadState(request, timeout=SECONDS))
        return responses[0].result, [sent for response in responses for sent in response.frames]

    def rejections(self, job: str) -> inspection_service_pb2.ListRejectionsResponse:
        return self.inspection.ListRejections(inspection_service_pb2.ListRejectionsRequest(job=job), timeout=SECONDS)

    def healthy(self) -> bool:
        answer = self.health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def everything(self, job: str) -> dict[str, Any]:
        """All that a job is: what must be equal before and after a call that was refused."""
        result, frames = self.read_state(job)
        _, numbers = self.read_state(job, "weights", "gradient")
        groups = self.inspection.ListGroups(inspection_service_pb2.ListGroupsRequest(job=job), timeout=SECONDS)
        summary = self.summary(job)
        return {
            "jobs": self.job_names(),
            "info": self.info(job),
            "weights": [sent.SerializeToString() for sent in self.pull(job)[1]],
            "numbers": [sent.SerializeToString() for sent in (*frames, *numbers)],
            "state": result,
            "groups": list(groups.groups),
            "planned": (summary.planned_bytes, self.status().planned_bytes),
            "pushes": summary.pushes,
            "workers": {
                worker.name: (worker.epoch, worker.active, worker.sequence, worker.pushes, worker.waiting)
                for worker in self.list_workers(job).values()
            },
        }


def call(
    channel: grpc.Channel,
    method: MethodDescriptor,
    *requests: bytes,
    timeout: float = SECONDS,
    metadata: Sequence[tuple[str, str]] = (),
    compression: grpc.Compression | None = None,
) -> list[bytes]:
    """Calls any RPC with messages that are bytes already; an answer without end is cut after its first message."""
    many_in, many_out = method.client_streaming, method.server_streaming
    kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
    callable_ = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
    given = iter(requests) if many_in else requests[0]
    answer = callable_(given, timeout=timeout, metadata=metadata, compression=compression)
    if not many_out:
        return [answer]
    try:
        first = next(answer, None)
        return [] if first is None else [first]
    finally:
        answer.cancel()


# Errors


@dataclass(frozen=True)
class Refusal:
    """What a failed call says: the code, our reason and its values (empty where it is no error of optd), the text."""

    code: grpc.StatusCode
    reason: str
    values: dict[str, str]
    text: str


def refusal_of(error: Any) -> Refusal:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the status was not the server's: it broke off on the way here
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "optd":
            return Refusal(error.code(), info.reason, dict(info.metadata), error.details())
    return Refusal(error.code(), "", {}, error.details() or "")


@contextmanager
def refused(reason: str, *parts: object) -> Iterator[None]:
    """The block's call is refused for `reason`, in a message that has all `parts`."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    refusal = refusal_of(caught.value)
    assert refusal.reason == reason, f"{refusal.code.name} {refusal.reason}: {refusal.text}"
    for part in parts:
        assert str(part) in refusal.text
