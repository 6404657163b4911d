from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnDeath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DEATH_UNSPECIFIED: _ClassVar[OnDeath]
    ON_DEATH_WAIT: _ClassVar[OnDeath]
    ON_DEATH_CONTINUE: _ClassVar[OnDeath]
    ON_DEATH_FAIL: _ClassVar[OnDeath]
ON_DEATH_UNSPECIFIED: OnDeath
ON_DEATH_WAIT: OnDeath
ON_DEATH_CONTINUE: OnDeath
ON_DEATH_FAIL: OnDeath

class ParameterSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: _tensor_pb2.Dtype
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("name", "options", "parameters", "algorithm")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: _containers.MessageMap[str, _option_pb2.OptionValue]
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterSpec]
    algorithm: str
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., parameters: _Optional[_Iterable[_Union[ParameterSpec, _Mapping]]] = ..., algorithm: _Optional[str] = ...) -> None: ...

class ExponentialScale(_message.Message):
    __slots__ = ("alpha", "cutoff")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    CUTOFF_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    cutoff: float
    def __init__(self, alpha: _Optional[float] = ..., cutoff: _Optional[float] = ...) -> None: ...

class StalenessScale(_message.Message):
    __slots__ = ("inverse", "exponential")
    INVERSE_FIELD_NUMBER: _ClassVar[int]
    EXPONENTIAL_FIELD_NUMBER: _ClassVar[int]
    inverse: bool
    exponential: ExponentialScale
    def __init__(self, inverse: bool = ..., exponential: _Optional[_Union[ExponentialScale, _Mapping]] = ...) -> None: ...

class AsyncPolicy(_message.Message):
    __slots__ = ("staleness", "max_staleness")
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    staleness: StalenessScale
    max_staleness: int
    def __init__(self, staleness: _Optional[_Union[StalenessScale, _Mapping]] = ..., max_staleness: _Optional[int] = ...) -> None: ...

class SyncPolicy(_message.Message):
    __slots__ = ("workers", "live", "quorum", "grace_seconds", "grace_auto", "round_seconds", "on_death")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GRACE_AUTO_FIELD_NUMBER: _ClassVar[int]
    ROUND_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ON_DEATH_FIELD_NUMBER: _ClassVar[int]
    workers: int
    live: bool
    quorum: int
    grace_seconds: float
    grace_auto: bool
    round_seconds: float
    on_death: OnDeath
    def __init__(self, workers: _Optional[int] = ..., live: bool = ..., quorum: _Optional[int] = ..., grace_seconds: _Optional[float] = ..., grace_auto: bool = ..., round_seconds: _Optional[float] = ..., on_death: _Optional[_Union[OnDeath, str]] = ...) -> None: ...

class BoundedPolicy(_message.Message):
    __slots__ = ("staleness",)
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    staleness: int
    def __init__(self, staleness: _Optional[int] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("sync", "bounded")
    ASYNC_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    BOUNDED_FIELD_NUMBER: _ClassVar[int]
    sync: SyncPolicy
    bounded: BoundedPolicy
    def __init__(self, sync: _Optional[_Union[SyncPolicy, _Mapping]] = ..., bounded: _Optional[_Union[BoundedPolicy, _Mapping]] = ..., **kwargs) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("name", "algorithm", "defaults", "groups", "policy", "options", "ephemeral")
    class DefaultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    algorithm: str
    defaults: _containers.MessageMap[str, _option_pb2.OptionValue]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    policy: Policy
    options: _containers.MessageMap[str, _option_pb2.OptionValue]
    ephemeral: bool
    def __init__(self, name: _Optional[str] = ..., algorithm: _Optional[str] = ..., defaults: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., options: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., ephemeral: bool = ...) -> None: ...

class JobVersion(_message.Message):
    __slots__ = ("version", "durable_version", "revision")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    version: int
    durable_version: int
    revision: int
    def __init__(self, version: _Optional[int] = ..., durable_version: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class ParameterInfo(_message.Message):
    __slots__ = ("name", "shape", "dtype", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: _tensor_pb2.Dtype
    offset: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class GroupInfo(_message.Message):
    __slots__ = ("index", "options", "parameters")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    options: _option_pb2.GroupOptions
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterInfo]
    def __init__(self, index: _Optional[int] = ..., options: _Optional[_Union[_option_pb2.GroupOptions, _Mapping]] = ..., parameters: _Optional[_Iterable[_Union[ParameterInfo, _Mapping]]] = ...) -> None: ...

class AverageInfo(_message.Message):
    __slots__ = ("name", "updates")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    name: str
    updates: int
    def __init__(self, name: _Optional[str] = ..., updates: _Optional[int] = ...) -> None: ...

class JobInfo(_message.Message):
    __slots__ = ("name", "algorithm", "defaults", "policy", "groups", "version", "options", "averages", "ephemeral", "stepped_unix_ms", "id")
    class DefaultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    STEPPED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    algorithm: str
    defaults: _containers.MessageMap[str, _option_pb2.OptionValue]
    policy: Policy
    groups: _containers.RepeatedCompositeFieldContainer[GroupInfo]
    version: JobVersion
    options: _option_pb2.JobOptions
    averages: _containers.RepeatedCompositeFieldContainer[AverageInfo]
    ephemeral: bool
    stepped_unix_ms: int
    id: str
    def __init__(self, name: _Optional[str] = ..., algorithm: _Optional[str] = ..., defaults: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupInfo, _Mapping]]] = ..., version: _Optional[_Union[JobVersion, _Mapping]] = ..., options: _Optional[_Union[_option_pb2.JobOptions, _Mapping]] = ..., averages: _Optional[_Iterable[_Union[AverageInfo, _Mapping]]] = ..., ephemeral: bool = ..., stepped_unix_ms: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...
