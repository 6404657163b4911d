from optd_wire.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class SnapshotInfo(_message.Message):
    __slots__ = ("version", "written_unix_ms", "bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    written_unix_ms: int
    bytes: int
    def __init__(self, version: _Optional[int] = ..., written_unix_ms: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots", "version")
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotInfo]
    version: _job_pb2.JobVersion
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotInfo, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class ReadCheckpointRequest(_message.Message):
    __slots__ = ("job", "version")
    JOB_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    job: str
    version: int
    def __init__(self, job: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ReadCheckpointResponse(_message.Message):
    __slots__ = ("version", "bytes", "file", "data")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    bytes: int
    file: str
    data: bytes
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., bytes: _Optional[int] = ..., file: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class RestoreJobRequest(_message.Message):
    __slots__ = ("job", "creation_id", "replace_for", "file", "last", "data")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CREATION_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FOR_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    job: str
    creation_id: str
    replace_for: str
    file: str
    last: bool
    data: bytes
    def __init__(self, job: _Optional[str] = ..., creation_id: _Optional[str] = ..., replace_for: _Optional[str] = ..., file: _Optional[str] = ..., last: bool = ..., data: _Optional[bytes] = ...) -> None: ...

class RestoreJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.JobInfo
    def __init__(self, job: _Optional[_Union[_job_pb2.JobInfo, _Mapping]] = ...) -> None: ...

class RollBackJobRequest(_message.Message):
    __slots__ = ("job", "version")
    JOB_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    job: str
    version: int
    def __init__(self, job: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RollBackJobResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...
