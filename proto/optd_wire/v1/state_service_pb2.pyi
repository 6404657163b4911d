from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadStateRequest(_message.Message):
    __slots__ = ("job", "fields", "group", "parameter")
    JOB_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    job: str
    fields: _containers.RepeatedScalarFieldContainer[str]
    group: str
    parameter: str
    def __init__(self, job: _Optional[str] = ..., fields: _Optional[_Iterable[str]] = ..., group: _Optional[str] = ..., parameter: _Optional[str] = ...) -> None: ...

class StateEntries(_message.Message):
    __slots__ = ("field", "present", "shapes")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    field: str
    present: _containers.RepeatedScalarFieldContainer[bool]
    shapes: _containers.RepeatedCompositeFieldContainer[StateShape]
    def __init__(self, field: _Optional[str] = ..., present: _Optional[_Iterable[bool]] = ..., shapes: _Optional[_Iterable[_Union[StateShape, _Mapping]]] = ...) -> None: ...

class StateShape(_message.Message):
    __slots__ = ("sizes", "dtype")
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    dtype: _tensor_pb2.Dtype
    def __init__(self, sizes: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ...) -> None: ...

class GroupState(_message.Message):
    __slots__ = ("group", "steps", "entries")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    group: int
    steps: _containers.RepeatedScalarFieldContainer[int]
    entries: _containers.RepeatedCompositeFieldContainer[StateEntries]
    def __init__(self, group: _Optional[int] = ..., steps: _Optional[_Iterable[int]] = ..., entries: _Optional[_Iterable[_Union[StateEntries, _Mapping]]] = ...) -> None: ...

class ReadStateResult(_message.Message):
    __slots__ = ("version", "groups", "averages")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    groups: _containers.RepeatedCompositeFieldContainer[GroupState]
    averages: _containers.RepeatedCompositeFieldContainer[_job_pb2.AverageInfo]
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupState, _Mapping]]] = ..., averages: _Optional[_Iterable[_Union[_job_pb2.AverageInfo, _Mapping]]] = ...) -> None: ...

class ReadStateResponse(_message.Message):
    __slots__ = ("result", "frames")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    result: ReadStateResult
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, result: _Optional[_Union[ReadStateResult, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class WriteStateHeader(_message.Message):
    __slots__ = ("job", "worker", "epoch", "groups", "averages", "updates", "if_alone_at", "write_id", "beside_others")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    IF_ALONE_AT_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    BESIDE_OTHERS_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupState]
    averages: _containers.RepeatedCompositeFieldContainer[_job_pb2.AverageInfo]
    updates: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupUpdate]
    if_alone_at: _job_pb2.JobVersion
    write_id: str
    beside_others: bool
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupState, _Mapping]]] = ..., averages: _Optional[_Iterable[_Union[_job_pb2.AverageInfo, _Mapping]]] = ..., updates: _Optional[_Iterable[_Union[_option_pb2.GroupUpdate, _Mapping]]] = ..., if_alone_at: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., write_id: _Optional[str] = ..., beside_others: bool = ...) -> None: ...

class WriteStateRequest(_message.Message):
    __slots__ = ("header", "last", "frames")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    header: WriteStateHeader
    last: bool
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, header: _Optional[_Union[WriteStateHeader, _Mapping]] = ..., last: bool = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class WriteStateResponse(_message.Message):
    __slots__ = ("version", "options")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    options: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupOptions]
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., options: _Optional[_Iterable[_Union[_option_pb2.GroupOptions, _Mapping]]] = ...) -> None: ...
