from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_END_UNSPECIFIED: _ClassVar[LeaseEnd]
    LEASE_END_LEFT: _ClassVar[LeaseEnd]
    LEASE_END_EXPIRED: _ClassVar[LeaseEnd]
    LEASE_END_REPLACED: _ClassVar[LeaseEnd]
    LEASE_END_ROLLED_BACK: _ClassVar[LeaseEnd]
LEASE_END_UNSPECIFIED: LeaseEnd
LEASE_END_LEFT: LeaseEnd
LEASE_END_EXPIRED: LeaseEnd
LEASE_END_REPLACED: LeaseEnd
LEASE_END_ROLLED_BACK: LeaseEnd

class JoinRequest(_message.Message):
    __slots__ = ("job", "worker", "spec", "wait_ms", "messages_only", "job_id", "host", "pid", "resumes_epoch", "session_id")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_ONLY_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESUMES_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    spec: _job_pb2.JobSpec
    wait_ms: int
    messages_only: bool
    job_id: str
    host: str
    pid: int
    resumes_epoch: int
    session_id: str
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., spec: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., wait_ms: _Optional[int] = ..., messages_only: bool = ..., job_id: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., resumes_epoch: _Optional[int] = ..., session_id: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("job", "worker", "epoch", "host", "pid")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    host: str
    pid: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

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

class StalenessSummary(_message.Message):
    __slots__ = ("p50", "p99", "max")
    P50_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    p50: int
    p99: int
    max: int
    def __init__(self, p50: _Optional[int] = ..., p99: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("name", "epoch", "active", "lease_remaining_ms", "sequence", "pushes", "rejections", "staleness", "waiting", "lane", "host", "pid", "joined_unix_ms", "last_push_unix_ms", "last_step_unix_ms", "ended", "ended_unix_ms", "recent_staleness", "rejections_by_reason", "dropped_rounds", "waiting_since_unix_ms", "speed")
    class RejectionsByReasonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
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
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    JOINED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_PUSH_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RECENT_STALENESS_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_BY_REASON_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_SINCE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
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
    host: str
    pid: int
    joined_unix_ms: int
    last_push_unix_ms: int
    last_step_unix_ms: int
    ended: LeaseEnd
    ended_unix_ms: int
    recent_staleness: StalenessSummary
    rejections_by_reason: _containers.ScalarMap[str, int]
    dropped_rounds: int
    waiting_since_unix_ms: int
    speed: float
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., active: bool = ..., lease_remaining_ms: _Optional[int] = ..., sequence: _Optional[int] = ..., pushes: _Optional[int] = ..., rejections: _Optional[int] = ..., staleness: _Optional[int] = ..., waiting: bool = ..., lane: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., joined_unix_ms: _Optional[int] = ..., last_push_unix_ms: _Optional[int] = ..., last_step_unix_ms: _Optional[int] = ..., ended: _Optional[_Union[LeaseEnd, str]] = ..., ended_unix_ms: _Optional[int] = ..., recent_staleness: _Optional[_Union[StalenessSummary, _Mapping]] = ..., rejections_by_reason: _Optional[_Mapping[str, int]] = ..., dropped_rounds: _Optional[int] = ..., waiting_since_unix_ms: _Optional[int] = ..., speed: _Optional[float] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "version", "unix_ms")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    version: _job_pb2.JobVersion
    unix_ms: int
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., unix_ms: _Optional[int] = ...) -> None: ...
