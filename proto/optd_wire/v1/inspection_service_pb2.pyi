from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import job_service_pb2 as _job_service_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from optd_wire.v1 import worker_service_pb2 as _worker_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_requests", "max_streams_per_connection", "max_memory_bytes", "max_inflight_bytes", "max_job_inflight_bytes")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_PER_CONNECTION_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_JOB_INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_requests: int
    max_streams_per_connection: int
    max_memory_bytes: int
    max_inflight_bytes: int
    max_job_inflight_bytes: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_requests: _Optional[int] = ..., max_streams_per_connection: _Optional[int] = ..., max_memory_bytes: _Optional[int] = ..., max_inflight_bytes: _Optional[int] = ..., max_job_inflight_bytes: _Optional[int] = ...) -> None: ...

class GetServerStatusResponse(_message.Message):
    __slots__ = ("server_version", "uptime_ms", "serving", "jobs", "workers", "requests", "planned_bytes", "resident_bytes", "limits", "authentication", "tls", "kernels", "durability", "rejections_without_job")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    AUTHENTICATION_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_WITHOUT_JOB_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    uptime_ms: int
    serving: str
    jobs: int
    workers: int
    requests: int
    planned_bytes: int
    resident_bytes: int
    limits: Limits
    authentication: str
    tls: bool
    kernels: str
    durability: str
    rejections_without_job: int
    def __init__(self, server_version: _Optional[str] = ..., uptime_ms: _Optional[int] = ..., serving: _Optional[str] = ..., jobs: _Optional[int] = ..., workers: _Optional[int] = ..., requests: _Optional[int] = ..., planned_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., authentication: _Optional[str] = ..., tls: bool = ..., kernels: _Optional[str] = ..., durability: _Optional[str] = ..., rejections_without_job: _Optional[int] = ...) -> None: ...

class ListAlgorithmsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAlgorithmsResponse(_message.Message):
    __slots__ = ("algorithms", "group_options", "job_options")
    ALGORITHMS_FIELD_NUMBER: _ClassVar[int]
    GROUP_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    JOB_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    algorithms: _containers.RepeatedCompositeFieldContainer[_option_pb2.AlgorithmInfo]
    group_options: _containers.RepeatedCompositeFieldContainer[_option_pb2.OptionInfo]
    job_options: _containers.RepeatedCompositeFieldContainer[_option_pb2.OptionInfo]
    def __init__(self, algorithms: _Optional[_Iterable[_Union[_option_pb2.AlgorithmInfo, _Mapping]]] = ..., group_options: _Optional[_Iterable[_Union[_option_pb2.OptionInfo, _Mapping]]] = ..., job_options: _Optional[_Iterable[_Union[_option_pb2.OptionInfo, _Mapping]]] = ...) -> None: ...

class ListGroupsRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class GroupSummary(_message.Message):
    __slots__ = ("index", "options", "parameters", "elements", "dtypes", "min_steps", "max_steps", "effective")
    class EffectiveEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    MIN_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    index: int
    options: _option_pb2.GroupOptions
    parameters: int
    elements: int
    dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Dtype]
    min_steps: int
    max_steps: int
    effective: _containers.MessageMap[str, _option_pb2.OptionValue]
    def __init__(self, index: _Optional[int] = ..., options: _Optional[_Union[_option_pb2.GroupOptions, _Mapping]] = ..., parameters: _Optional[int] = ..., elements: _Optional[int] = ..., dtypes: _Optional[_Iterable[_Union[_tensor_pb2.Dtype, str]]] = ..., min_steps: _Optional[int] = ..., max_steps: _Optional[int] = ..., effective: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ...) -> None: ...

class ListGroupsResponse(_message.Message):
    __slots__ = ("groups", "version")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSummary]
    version: _job_pb2.JobVersion
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupSummary, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class InspectGroupRequest(_message.Message):
    __slots__ = ("job", "group", "parameter", "statistics", "bins")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    job: str
    group: str
    parameter: str
    statistics: bool
    bins: int
    def __init__(self, job: _Optional[str] = ..., group: _Optional[str] = ..., parameter: _Optional[str] = ..., statistics: bool = ..., bins: _Optional[int] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("count", "zeros", "nonfinite", "min", "max", "mean", "std", "norm", "histogram_edges", "histogram_counts")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_EDGES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_COUNTS_FIELD_NUMBER: _ClassVar[int]
    count: int
    zeros: int
    nonfinite: int
    min: float
    max: float
    mean: float
    std: float
    norm: float
    histogram_edges: _containers.RepeatedScalarFieldContainer[float]
    histogram_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, count: _Optional[int] = ..., zeros: _Optional[int] = ..., nonfinite: _Optional[int] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., std: _Optional[float] = ..., norm: _Optional[float] = ..., histogram_edges: _Optional[_Iterable[float]] = ..., histogram_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class FieldStatistics(_message.Message):
    __slots__ = ("field", "statistics")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    field: str
    statistics: Statistics
    def __init__(self, field: _Optional[str] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ...) -> None: ...

class ParameterReport(_message.Message):
    __slots__ = ("parameter", "steps", "fields", "overrides")
    class OverridesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    parameter: _job_pb2.ParameterInfo
    steps: int
    fields: _containers.RepeatedCompositeFieldContainer[FieldStatistics]
    overrides: _containers.MessageMap[str, _option_pb2.OptionValue]
    def __init__(self, parameter: _Optional[_Union[_job_pb2.ParameterInfo, _Mapping]] = ..., steps: _Optional[int] = ..., fields: _Optional[_Iterable[_Union[FieldStatistics, _Mapping]]] = ..., overrides: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ...) -> None: ...

class InspectGroupResponse(_message.Message):
    __slots__ = ("group", "version", "parameters", "gradient_version", "gradient_note")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NOTE_FIELD_NUMBER: _ClassVar[int]
    group: GroupSummary
    version: _job_pb2.JobVersion
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterReport]
    gradient_version: int
    gradient_note: str
    def __init__(self, group: _Optional[_Union[GroupSummary, _Mapping]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., parameters: _Optional[_Iterable[_Union[ParameterReport, _Mapping]]] = ..., gradient_version: _Optional[int] = ..., gradient_note: _Optional[str] = ...) -> None: ...

class ListRejectionsRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("unix_ms", "worker", "reason", "message", "version")
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    worker: str
    reason: str
    message: str
    version: int
    def __init__(self, unix_ms: _Optional[int] = ..., worker: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListRejectionsResponse(_message.Message):
    __slots__ = ("counts", "recent")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.ScalarMap[str, int]
    recent: _containers.RepeatedCompositeFieldContainer[Rejection]
    def __init__(self, counts: _Optional[_Mapping[str, int]] = ..., recent: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ...) -> None: ...

class ListOptionChangesRequest(_message.Message):
    __slots__ = ("job", "group")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    job: str
    group: str
    def __init__(self, job: _Optional[str] = ..., group: _Optional[str] = ...) -> None: ...

class OptionChange(_message.Message):
    __slots__ = ("unix_ms", "version", "group", "option", "before", "after", "worker")
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    version: int
    group: str
    option: str
    before: _option_pb2.OptionValue
    after: _option_pb2.OptionValue
    worker: str
    def __init__(self, unix_ms: _Optional[int] = ..., version: _Optional[int] = ..., group: _Optional[str] = ..., option: _Optional[str] = ..., before: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ..., after: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ..., worker: _Optional[str] = ...) -> None: ...

class ListOptionChangesResponse(_message.Message):
    __slots__ = ("changes", "version", "forgotten")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[OptionChange]
    version: _job_pb2.JobVersion
    forgotten: int
    def __init__(self, changes: _Optional[_Iterable[_Union[OptionChange, _Mapping]]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., forgotten: _Optional[int] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class RoundInfo(_message.Message):
    __slots__ = ("unix_ms", "step", "opened_unix_ms", "arrived", "arriving", "missing", "places", "deadline_unix_ms", "release", "fragment")
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OPENED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    ARRIVING_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    step: int
    opened_unix_ms: int
    arrived: _containers.RepeatedScalarFieldContainer[str]
    arriving: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.RepeatedCompositeFieldContainer[_worker_service_pb2.WorkerInfo]
    places: int
    deadline_unix_ms: int
    release: str
    fragment: int
    def __init__(self, unix_ms: _Optional[int] = ..., step: _Optional[int] = ..., opened_unix_ms: _Optional[int] = ..., arrived: _Optional[_Iterable[str]] = ..., arriving: _Optional[_Iterable[str]] = ..., missing: _Optional[_Iterable[_Union[_worker_service_pb2.WorkerInfo, _Mapping]]] = ..., places: _Optional[int] = ..., deadline_unix_ms: _Optional[int] = ..., release: _Optional[str] = ..., fragment: _Optional[int] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundInfo]
    def __init__(self, rounds: _Optional[_Iterable[_Union[RoundInfo, _Mapping]]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job", "interval_ms")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    job: str
    interval_ms: int
    def __init__(self, job: _Optional[str] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job", "groups", "workers", "unix_ms", "rounds")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    job: _job_service_pb2.JobSummary
    groups: _containers.RepeatedCompositeFieldContainer[GroupSummary]
    workers: _containers.RepeatedCompositeFieldContainer[_worker_service_pb2.WorkerInfo]
    unix_ms: int
    rounds: _containers.RepeatedCompositeFieldContainer[RoundInfo]
    def __init__(self, job: _Optional[_Union[_job_service_pb2.JobSummary, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupSummary, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[_worker_service_pb2.WorkerInfo, _Mapping]]] = ..., unix_ms: _Optional[int] = ..., rounds: _Optional[_Iterable[_Union[RoundInfo, _Mapping]]] = ...) -> None: ...
