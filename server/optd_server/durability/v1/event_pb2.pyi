from optd_wire.v1 import inspection_service_pb2 as _inspection_service_pb2
from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import state_service_pb2 as _state_service_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("created", "group_added", "joined", "left", "expired", "options_changed", "policy_changed", "state_replaced", "round_added", "stepped", "skipped", "deleted", "fenced", "rows", "frames")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    GROUP_ADDED_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    POLICY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    STATE_REPLACED_FIELD_NUMBER: _ClassVar[int]
    ROUND_ADDED_FIELD_NUMBER: _ClassVar[int]
    STEPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    created: Created
    group_added: GroupAdded
    joined: Joined
    left: Left
    expired: Expired
    options_changed: OptionsChanged
    policy_changed: PolicyChanged
    state_replaced: StateReplaced
    round_added: RoundAdded
    stepped: Stepped
    skipped: Skipped
    deleted: Deleted
    fenced: Fenced
    rows: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RowFrame]
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, created: _Optional[_Union[Created, _Mapping]] = ..., group_added: _Optional[_Union[GroupAdded, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., left: _Optional[_Union[Left, _Mapping]] = ..., expired: _Optional[_Union[Expired, _Mapping]] = ..., options_changed: _Optional[_Union[OptionsChanged, _Mapping]] = ..., policy_changed: _Optional[_Union[PolicyChanged, _Mapping]] = ..., state_replaced: _Optional[_Union[StateReplaced, _Mapping]] = ..., round_added: _Optional[_Union[RoundAdded, _Mapping]] = ..., stepped: _Optional[_Union[Stepped, _Mapping]] = ..., skipped: _Optional[_Union[Skipped, _Mapping]] = ..., deleted: _Optional[_Union[Deleted, _Mapping]] = ..., fenced: _Optional[_Union[Fenced, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[_tensor_pb2.RowFrame, _Mapping]]] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class Created(_message.Message):
    __slots__ = ("spec", "policy", "id", "wall", "first_epoch")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    FIRST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    spec: _job_pb2.JobSpec
    policy: _job_pb2.Policy
    id: str
    wall: float
    first_epoch: int
    def __init__(self, spec: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., id: _Optional[str] = ..., wall: _Optional[float] = ..., first_epoch: _Optional[int] = ...) -> None: ...

class GroupAdded(_message.Message):
    __slots__ = ("spec", "group")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    spec: _job_pb2.GroupSpec
    group: int
    def __init__(self, spec: _Optional[_Union[_job_pb2.GroupSpec, _Mapping]] = ..., group: _Optional[int] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("worker", "epoch", "session_id")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    session_id: str
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., session_id: _Optional[str] = ...) -> None: ...

class Left(_message.Message):
    __slots__ = ("worker", "epoch")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Expired(_message.Message):
    __slots__ = ("worker", "epoch", "why")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    why: str
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class OptionsChanged(_message.Message):
    __slots__ = ("edits",)
    EDITS_FIELD_NUMBER: _ClassVar[int]
    edits: OptionEdits
    def __init__(self, edits: _Optional[_Union[OptionEdits, _Mapping]] = ...) -> None: ...

class PolicyChanged(_message.Message):
    __slots__ = ("policy", "changes")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    policy: _job_pb2.Policy
    changes: _containers.RepeatedCompositeFieldContainer[_inspection_service_pb2.OptionChange]
    def __init__(self, policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[_inspection_service_pb2.OptionChange, _Mapping]]] = ...) -> None: ...

class Deleted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Fenced(_message.Message):
    __slots__ = ("why", "epochs", "revisions")
    WHY_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    why: str
    epochs: int
    revisions: int
    def __init__(self, why: _Optional[str] = ..., epochs: _Optional[int] = ..., revisions: _Optional[int] = ...) -> None: ...

class OptionEdits(_message.Message):
    __slots__ = ("groups", "job", "changes")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupEdit]
    job: _option_pb2.JobOptions
    changes: _containers.RepeatedCompositeFieldContainer[_inspection_service_pb2.OptionChange]
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupEdit, _Mapping]]] = ..., job: _Optional[_Union[_option_pb2.JobOptions, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[_inspection_service_pb2.OptionChange, _Mapping]]] = ...) -> None: ...

class GroupEdit(_message.Message):
    __slots__ = ("group", "options")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    group: int
    options: _option_pb2.GroupOptions
    def __init__(self, group: _Optional[int] = ..., options: _Optional[_Union[_option_pb2.GroupOptions, _Mapping]] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("worker", "epoch", "sequence", "staleness", "known_revision", "flush", "norms", "checksum", "fragment")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_REVISION_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    sequence: int
    staleness: int
    known_revision: int
    flush: bool
    norms: bool
    checksum: int
    fragment: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., staleness: _Optional[int] = ..., known_revision: _Optional[int] = ..., flush: bool = ..., norms: bool = ..., checksum: _Optional[int] = ..., fragment: _Optional[int] = ...) -> None: ...

class NonfiniteEntries(_message.Message):
    __slots__ = ("worker", "count", "parameter", "wall")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    WALL_FIELD_NUMBER: _ClassVar[int]
    worker: str
    count: int
    parameter: str
    wall: float
    def __init__(self, worker: _Optional[str] = ..., count: _Optional[int] = ..., parameter: _Optional[str] = ..., wall: _Optional[float] = ...) -> None: ...

class Gradient(_message.Message):
    __slots__ = ("present",)
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    present: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, present: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Stepped(_message.Message):
    __slots__ = ("wall", "pushes", "gradient", "edits", "nonfinite", "loss", "begins", "norm", "is_clipped", "norms")
    WALL_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    IS_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    wall: float
    pushes: _containers.RepeatedCompositeFieldContainer[Mark]
    gradient: Gradient
    edits: OptionEdits
    nonfinite: _containers.RepeatedCompositeFieldContainer[NonfiniteEntries]
    loss: float
    begins: bool
    norm: float
    is_clipped: bool
    norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, wall: _Optional[float] = ..., pushes: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., gradient: _Optional[_Union[Gradient, _Mapping]] = ..., edits: _Optional[_Union[OptionEdits, _Mapping]] = ..., nonfinite: _Optional[_Iterable[_Union[NonfiniteEntries, _Mapping]]] = ..., loss: _Optional[float] = ..., begins: bool = ..., norm: _Optional[float] = ..., is_clipped: bool = ..., norms: _Optional[_Iterable[float]] = ...) -> None: ...

class RoundAdded(_message.Message):
    __slots__ = ("pushes", "gradient", "weights", "row_weights", "edits", "nonfinite")
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ROW_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    pushes: _containers.RepeatedCompositeFieldContainer[Mark]
    gradient: Gradient
    weights: _containers.RepeatedCompositeFieldContainer[Weights]
    row_weights: _containers.RepeatedScalarFieldContainer[float]
    edits: OptionEdits
    nonfinite: _containers.RepeatedCompositeFieldContainer[NonfiniteEntries]
    def __init__(self, pushes: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., gradient: _Optional[_Union[Gradient, _Mapping]] = ..., weights: _Optional[_Iterable[_Union[Weights, _Mapping]]] = ..., row_weights: _Optional[_Iterable[float]] = ..., edits: _Optional[_Union[OptionEdits, _Mapping]] = ..., nonfinite: _Optional[_Iterable[_Union[NonfiniteEntries, _Mapping]]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("weights",)
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, weights: _Optional[_Iterable[float]] = ...) -> None: ...

class Skipped(_message.Message):
    __slots__ = ("pushes", "nothing_pending", "edits", "nonfinite")
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    NOTHING_PENDING_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    pushes: _containers.RepeatedCompositeFieldContainer[Mark]
    nothing_pending: bool
    edits: OptionEdits
    nonfinite: _containers.RepeatedCompositeFieldContainer[NonfiniteEntries]
    def __init__(self, pushes: _Optional[_Iterable[_Union[Mark, _Mapping]]] = ..., nothing_pending: bool = ..., edits: _Optional[_Union[OptionEdits, _Mapping]] = ..., nonfinite: _Optional[_Iterable[_Union[NonfiniteEntries, _Mapping]]] = ...) -> None: ...

class StateReplaced(_message.Message):
    __slots__ = ("worker", "epoch", "write_id", "groups", "averages", "fields", "edits")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    write_id: str
    groups: _containers.RepeatedCompositeFieldContainer[_state_service_pb2.GroupState]
    averages: _containers.RepeatedCompositeFieldContainer[_job_pb2.AverageInfo]
    fields: _containers.RepeatedCompositeFieldContainer[FieldWritten]
    edits: OptionEdits
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., write_id: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[_state_service_pb2.GroupState, _Mapping]]] = ..., averages: _Optional[_Iterable[_Union[_job_pb2.AverageInfo, _Mapping]]] = ..., fields: _Optional[_Iterable[_Union[FieldWritten, _Mapping]]] = ..., edits: _Optional[_Union[OptionEdits, _Mapping]] = ...) -> None: ...

class FieldWritten(_message.Message):
    __slots__ = ("field", "layouts", "parameters")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    field: str
    layouts: _containers.RepeatedCompositeFieldContainer[FieldLayout]
    parameters: _containers.RepeatedCompositeFieldContainer[WrittenParameter]
    def __init__(self, field: _Optional[str] = ..., layouts: _Optional[_Iterable[_Union[FieldLayout, _Mapping]]] = ..., parameters: _Optional[_Iterable[_Union[WrittenParameter, _Mapping]]] = ...) -> None: ...

class FieldLayout(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _containers.RepeatedCompositeFieldContainer[_job_pb2.ParameterSpec]
    def __init__(self, parameters: _Optional[_Iterable[_Union[_job_pb2.ParameterSpec, _Mapping]]] = ...) -> None: ...

class WrittenParameter(_message.Message):
    __slots__ = ("group", "parameter")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    group: int
    parameter: int
    def __init__(self, group: _Optional[int] = ..., parameter: _Optional[int] = ...) -> None: ...
