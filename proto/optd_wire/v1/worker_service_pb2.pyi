from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("job", "worker", "spec", "wait_ms", "messages_only", "job_id", "resumes_epoch", "session_id")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_ONLY_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESUMES_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    spec: _job_pb2.JobSpec
    wait_ms: int
    messages_only: bool
    job_id: str
    resumes_epoch: int
    session_id: str
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., spec: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., wait_ms: _Optional[int] = ..., messages_only: bool = ..., job_id: _Optional[str] = ..., resumes_epoch: _Optional[int] = ..., session_id: _Optional[str] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("address", "ranges")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    address: str
    ranges: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.FlatRange]
    def __init__(self, address: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[_tensor_pb2.FlatRange, _Mapping]]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("epoch", "lease_ms", "job", "shards", "max_message_bytes", "previous_epoch", "previous_sequence", "other_workers")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OTHER_WORKERS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_ms: int
    job: _job_pb2.JobInfo
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    max_message_bytes: int
    previous_epoch: int
    previous_sequence: int
    other_workers: int
    def __init__(self, epoch: _Optional[int] = ..., lease_ms: _Optional[int] = ..., job: _Optional[_Union[_job_pb2.JobInfo, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., max_message_bytes: _Optional[int] = ..., previous_epoch: _Optional[int] = ..., previous_sequence: _Optional[int] = ..., other_workers: _Optional[int] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("job", "worker", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("version", "lease_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    lease_ms: int
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("job", "worker", "epoch", "returns")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    returns: bool
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., returns: bool = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class OpenSharedMemoryRequest(_message.Message):
    __slots__ = ("job", "worker", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class SharedSegment(_message.Message):
    __slots__ = ("range", "byte_offset")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    BYTE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    range: _tensor_pb2.FlatRange
    byte_offset: int
    def __init__(self, range: _Optional[_Union[_tensor_pb2.FlatRange, _Mapping]] = ..., byte_offset: _Optional[int] = ...) -> None: ...

class SharedExtent(_message.Message):
    __slots__ = ("bytes", "segments")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    segments: _containers.RepeatedCompositeFieldContainer[SharedSegment]
    def __init__(self, bytes: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SharedSegment, _Mapping]]] = ...) -> None: ...

class OpenSharedMemoryResponse(_message.Message):
    __slots__ = ("path", "ticket", "extents", "gradient_extents")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_EXTENTS_FIELD_NUMBER: _ClassVar[int]
    path: str
    ticket: bytes
    extents: _containers.RepeatedCompositeFieldContainer[SharedExtent]
    gradient_extents: _containers.RepeatedCompositeFieldContainer[SharedExtent]
    def __init__(self, path: _Optional[str] = ..., ticket: _Optional[bytes] = ..., extents: _Optional[_Iterable[_Union[SharedExtent, _Mapping]]] = ..., gradient_extents: _Optional[_Iterable[_Union[SharedExtent, _Mapping]]] = ...) -> None: ...

class ConfirmSharedMemoryRequest(_message.Message):
    __slots__ = ("job", "worker", "epoch", "token", "problem")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    token: bytes
    problem: str
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., token: _Optional[bytes] = ..., problem: _Optional[str] = ...) -> None: ...

class ConfirmSharedMemoryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("name", "epoch", "active", "lease_remaining_ms", "sequence", "pushes", "rejections", "staleness", "waiting", "lane")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    LEASE_REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    active: bool
    lease_remaining_ms: int
    sequence: int
    pushes: int
    rejections: int
    staleness: int
    waiting: bool
    lane: str
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., active: bool = ..., lease_remaining_ms: _Optional[int] = ..., sequence: _Optional[int] = ..., pushes: _Optional[int] = ..., rejections: _Optional[int] = ..., staleness: _Optional[int] = ..., waiting: bool = ..., lane: _Optional[str] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "version")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    version: _job_pb2.JobVersion
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...
