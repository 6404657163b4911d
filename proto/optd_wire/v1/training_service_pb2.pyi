from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PushHeader(_message.Message):
    __slots__ = ("job", "worker", "epoch", "sequence", "base_version", "updates", "known_revision", "shared", "weight", "loss_scale", "loss", "begins", "flush", "norms", "durable", "fragment")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_REVISION_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LOSS_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    sequence: int
    base_version: int
    updates: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupUpdate]
    known_revision: int
    shared: SharedGradient
    weight: float
    loss_scale: float
    loss: float
    begins: bool
    flush: bool
    norms: bool
    durable: bool
    fragment: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., base_version: _Optional[int] = ..., updates: _Optional[_Iterable[_Union[_option_pb2.GroupUpdate, _Mapping]]] = ..., known_revision: _Optional[int] = ..., shared: _Optional[_Union[SharedGradient, _Mapping]] = ..., weight: _Optional[float] = ..., loss_scale: _Optional[float] = ..., loss: _Optional[float] = ..., begins: bool = ..., flush: bool = ..., norms: bool = ..., durable: bool = ..., fragment: _Optional[int] = ...) -> None: ...

class SharedGradient(_message.Message):
    __slots__ = ("whole", "ranges")
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    whole: bool
    ranges: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.FlatRange]
    def __init__(self, whole: bool = ..., ranges: _Optional[_Iterable[_Union[_tensor_pb2.FlatRange, _Mapping]]] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("none", "encoding", "shared", "in_place", "changed")
    NONE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    none: bool
    encoding: _tensor_pb2.Encoding
    shared: bool
    in_place: bool
    changed: bool
    def __init__(self, none: bool = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., shared: bool = ..., in_place: bool = ..., changed: bool = ...) -> None: ...

class SharedWeights(_message.Message):
    __slots__ = ("regions", "in_place")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedScalarFieldContainer[int]
    in_place: bool
    def __init__(self, regions: _Optional[_Iterable[int]] = ..., in_place: bool = ...) -> None: ...

class PushResult(_message.Message):
    __slots__ = ("version", "applied_version", "staleness", "repeat", "options", "accumulated", "skipped", "unfinished", "clipped", "norms", "effective", "pushes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REPEAT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    applied_version: int
    staleness: int
    repeat: bool
    options: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupOptions]
    accumulated: int
    skipped: bool
    unfinished: bool
    clipped: bool
    norms: _containers.RepeatedCompositeFieldContainer[GroupNorms]
    effective: _containers.RepeatedCompositeFieldContainer[EffectiveOptions]
    pushes: int
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., applied_version: _Optional[int] = ..., staleness: _Optional[int] = ..., repeat: bool = ..., options: _Optional[_Iterable[_Union[_option_pb2.GroupOptions, _Mapping]]] = ..., accumulated: _Optional[int] = ..., skipped: bool = ..., unfinished: bool = ..., clipped: bool = ..., norms: _Optional[_Iterable[_Union[GroupNorms, _Mapping]]] = ..., effective: _Optional[_Iterable[_Union[EffectiveOptions, _Mapping]]] = ..., pushes: _Optional[int] = ...) -> None: ...

class GroupNorms(_message.Message):
    __slots__ = ("group", "gradient", "update")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    group: str
    gradient: float
    update: float
    def __init__(self, group: _Optional[str] = ..., gradient: _Optional[float] = ..., update: _Optional[float] = ...) -> None: ...

class EffectiveOptions(_message.Message):
    __slots__ = ("group", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    group: str
    options: _containers.MessageMap[str, _option_pb2.OptionValue]
    def __init__(self, group: _Optional[str] = ..., options: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "last", "rows", "frames")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    last: bool
    rows: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowFrame]
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., last: bool = ..., rows: _Optional[_Iterable[_Union[_tensor_pb2.RowFrame, _Mapping]]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: PushResult
    def __init__(self, result: _Optional[_Union[PushResult, _Mapping]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("job", "worker", "epoch", "known_version", "known_revision", "delivery", "groups", "parameters", "weights", "min_version", "wait_ms")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_REVISION_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    known_version: int
    known_revision: int
    delivery: Delivery
    groups: _containers.RepeatedScalarFieldContainer[str]
    parameters: _containers.RepeatedScalarFieldContainer[str]
    weights: str
    min_version: int
    wait_ms: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., known_version: _Optional[int] = ..., known_revision: _Optional[int] = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ..., groups: _Optional[_Iterable[str]] = ..., parameters: _Optional[_Iterable[str]] = ..., weights: _Optional[str] = ..., min_version: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class PullResult(_message.Message):
    __slots__ = ("version", "not_modified", "options", "shared")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    not_modified: bool
    options: _containers.RepeatedCompositeFieldContainer[_option_pb2.GroupOptions]
    shared: SharedWeights
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., not_modified: bool = ..., options: _Optional[_Iterable[_Union[_option_pb2.GroupOptions, _Mapping]]] = ..., shared: _Optional[_Union[SharedWeights, _Mapping]] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("result", "frames")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    result: PullResult
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, result: _Optional[_Union[PullResult, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("job", "worker", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    worker: str
    epoch: int
    def __init__(self, job: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("header", "last", "delivery", "release", "rows", "frames")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    last: bool
    delivery: Delivery
    release: Release
    rows: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowFrame]
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., last: bool = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[_tensor_pb2.RowFrame, _Mapping]]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("pushed", "pulled", "last", "rows", "frames")
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    pushed: PushResult
    pulled: PullResult
    last: bool
    rows: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowFrame]
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, pushed: _Optional[_Union[PushResult, _Mapping]] = ..., pulled: _Optional[_Union[PullResult, _Mapping]] = ..., last: bool = ..., rows: _Optional[_Iterable[_Union[_tensor_pb2.RowFrame, _Mapping]]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class PullRowsRequest(_message.Message):
    __slots__ = ("job", "group", "parameter", "ids", "encoding", "weights")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    job: str
    group: str
    parameter: str
    ids: bytes
    encoding: _tensor_pb2.Encoding
    weights: str
    def __init__(self, job: _Optional[str] = ..., group: _Optional[str] = ..., parameter: _Optional[str] = ..., ids: _Optional[bytes] = ..., encoding: _Optional[_Union[_tensor_pb2.Encoding, str]] = ..., weights: _Optional[str] = ...) -> None: ...

class PullRowsResponse(_message.Message):
    __slots__ = ("version", "rows")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    rows: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowFrame]
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[_tensor_pb2.RowFrame, _Mapping]]] = ...) -> None: ...

class WatchVersionsRequest(_message.Message):
    __slots__ = ("job", "known_version")
    JOB_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    job: str
    known_version: int
    def __init__(self, job: _Optional[str] = ..., known_version: _Optional[int] = ...) -> None: ...

class WatchVersionsResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...
