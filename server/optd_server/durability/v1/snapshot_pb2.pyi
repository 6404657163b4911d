from optd_wire.v1 import inspection_service_pb2 as _inspection_service_pb2
from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import job_service_pb2 as _job_service_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from optd_wire.v1 import training_service_pb2 as _training_service_pb2
from optd_server.durability.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Snapshot(_message.Message):
    __slots__ = ("name", "id", "created_wall", "created_with", "ephemeral", "policy", "version", "revision", "event", "stepped_wall", "written_revision", "applied_pushes", "algorithm", "defaults", "groups", "options", "history", "gradients", "members", "averages", "accumulation", "search", "first_policy", "fragments")
    class DefaultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    class SearchEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FragmentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: FragmentSteps
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[FragmentSteps, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_WALL_FIELD_NUMBER: _ClassVar[int]
    CREATED_WITH_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    STEPPED_WALL_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_REVISION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_PUSHES_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATION_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_POLICY_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    created_wall: float
    created_with: int
    ephemeral: bool
    policy: _job_pb2.Policy
    version: int
    revision: int
    event: int
    stepped_wall: float
    written_revision: int
    applied_pushes: int
    algorithm: str
    defaults: _containers.MessageMap[str, _option_pb2.OptionValue]
    groups: _containers.RepeatedCompositeFieldContainer[StoredGroup]
    options: _option_pb2.JobOptions
    history: StoredHistory
    gradients: _job_service_pb2.GradientSummary
    members: StoredMembers
    averages: _containers.RepeatedCompositeFieldContainer[_job_pb2.AverageInfo]
    accumulation: StoredAccumulation
    search: _containers.ScalarMap[str, str]
    first_policy: _job_pb2.Policy
    fragments: _containers.MessageMap[int, FragmentSteps]
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ..., created_wall: _Optional[float] = ..., created_with: _Optional[int] = ..., ephemeral: bool = ..., policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., version: _Optional[int] = ..., revision: _Optional[int] = ..., event: _Optional[int] = ..., stepped_wall: _Optional[float] = ..., written_revision: _Optional[int] = ..., applied_pushes: _Optional[int] = ..., algorithm: _Optional[str] = ..., defaults: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., groups: _Optional[_Iterable[_Union[StoredGroup, _Mapping]]] = ..., options: _Optional[_Union[_option_pb2.JobOptions, _Mapping]] = ..., history: _Optional[_Union[StoredHistory, _Mapping]] = ..., gradients: _Optional[_Union[_job_service_pb2.GradientSummary, _Mapping]] = ..., members: _Optional[_Union[StoredMembers, _Mapping]] = ..., averages: _Optional[_Iterable[_Union[_job_pb2.AverageInfo, _Mapping]]] = ..., accumulation: _Optional[_Union[StoredAccumulation, _Mapping]] = ..., search: _Optional[_Mapping[str, str]] = ..., first_policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., fragments: _Optional[_Mapping[int, FragmentSteps]] = ...) -> None: ...

class FragmentSteps(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...

class StoredGroup(_message.Message):
    __slots__ = ("options", "parameters", "extent", "last_changed", "steps", "fields")
    class LastChangedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: StoredChange
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[StoredChange, _Mapping]] = ...) -> None: ...
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    LAST_CHANGED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    options: _option_pb2.GroupOptions
    parameters: _containers.RepeatedCompositeFieldContainer[_job_pb2.ParameterSpec]
    extent: int
    last_changed: _containers.MessageMap[str, StoredChange]
    steps: _containers.RepeatedScalarFieldContainer[int]
    fields: _containers.RepeatedCompositeFieldContainer[StoredField]
    def __init__(self, options: _Optional[_Union[_option_pb2.GroupOptions, _Mapping]] = ..., parameters: _Optional[_Iterable[_Union[_job_pb2.ParameterSpec, _Mapping]]] = ..., extent: _Optional[int] = ..., last_changed: _Optional[_Mapping[str, StoredChange]] = ..., steps: _Optional[_Iterable[int]] = ..., fields: _Optional[_Iterable[_Union[StoredField, _Mapping]]] = ...) -> None: ...

class StoredChange(_message.Message):
    __slots__ = ("revision", "version")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    version: int
    def __init__(self, revision: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class StoredField(_message.Message):
    __slots__ = ("name", "dtype", "started")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: _tensor_pb2.Dtype
    started: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., started: _Optional[_Iterable[int]] = ...) -> None: ...

class StoredHistory(_message.Message):
    __slots__ = ("recent", "last", "counts")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RECENT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    recent: _containers.RepeatedCompositeFieldContainer[NumberedChange]
    last: _containers.RepeatedCompositeFieldContainer[NumberedChange]
    counts: _containers.ScalarMap[str, int]
    def __init__(self, recent: _Optional[_Iterable[_Union[NumberedChange, _Mapping]]] = ..., last: _Optional[_Iterable[_Union[NumberedChange, _Mapping]]] = ..., counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class NumberedChange(_message.Message):
    __slots__ = ("number", "change")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    number: int
    change: _inspection_service_pb2.OptionChange
    def __init__(self, number: _Optional[int] = ..., change: _Optional[_Union[_inspection_service_pb2.OptionChange, _Mapping]] = ...) -> None: ...

class StoredMembers(_message.Message):
    __slots__ = ("members", "forgotten_epoch")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[StoredMember]
    forgotten_epoch: int
    def __init__(self, members: _Optional[_Iterable[_Union[StoredMember, _Mapping]]] = ..., forgotten_epoch: _Optional[int] = ...) -> None: ...

class StoredMember(_message.Message):
    __slots__ = ("name", "epoch", "active", "fenced_by", "sequence", "reply", "write_id", "written", "pushes", "staleness", "previous_epoch", "previous_sequence", "checksum", "session_id", "joined", "last_rounds")
    class LastRoundsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: StoredPosition
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[StoredPosition, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    FENCED_BY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    active: bool
    fenced_by: str
    sequence: int
    reply: _training_service_pb2.PushResult
    write_id: str
    written: StoredAnswer
    pushes: int
    staleness: int
    previous_epoch: int
    previous_sequence: int
    checksum: int
    session_id: str
    joined: StoredPosition
    last_rounds: _containers.MessageMap[int, StoredPosition]
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., active: bool = ..., fenced_by: _Optional[str] = ..., sequence: _Optional[int] = ..., reply: _Optional[_Union[_training_service_pb2.PushResult, _Mapping]] = ..., write_id: _Optional[str] = ..., written: _Optional[_Union[StoredAnswer, _Mapping]] = ..., pushes: _Optional[int] = ..., staleness: _Optional[int] = ..., previous_epoch: _Optional[int] = ..., previous_sequence: _Optional[int] = ..., checksum: _Optional[int] = ..., session_id: _Optional[str] = ..., joined: _Optional[_Union[StoredPosition, _Mapping]] = ..., last_rounds: _Optional[_Mapping[int, StoredPosition]] = ...) -> None: ...

class StoredPosition(_message.Message):
    __slots__ = ("version", "rounds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    rounds: int
    def __init__(self, version: _Optional[int] = ..., rounds: _Optional[int] = ...) -> None: ...

class StoredAnswer(_message.Message):
    __slots__ = ("options", "version")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    options: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupOptions]
    version: _job_pb2.JobVersion
    def __init__(self, options: _Optional[_Iterable[_Union[_option_pb2.GroupOptions, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class StoredAccumulation(_message.Message):
    __slots__ = ("count", "totals", "rows")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    count: int
    totals: _containers.RepeatedCompositeFieldContainer[_event_pb2.Weights]
    rows: _containers.RepeatedCompositeFieldContainer[StoredRows]
    def __init__(self, count: _Optional[int] = ..., totals: _Optional[_Iterable[_Union[_event_pb2.Weights, _Mapping]]] = ..., rows: _Optional[_Iterable[_Union[StoredRows, _Mapping]]] = ...) -> None: ...

class StoredRows(_message.Message):
    __slots__ = ("group", "parameter", "sparse_dims", "weight")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    SPARSE_DIMS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    group: int
    parameter: int
    sparse_dims: int
    weight: float
    def __init__(self, group: _Optional[int] = ..., parameter: _Optional[int] = ..., sparse_dims: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...
