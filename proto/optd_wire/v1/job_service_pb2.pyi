from optd_wire.v1 import job_pb2 as _job_pb2
from optd_wire.v1 import option_pb2 as _option_pb2
from optd_wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateJobRequest(_message.Message):
    __slots__ = ("spec", "last", "creation_id", "replace_for", "frames")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CREATION_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FOR_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    spec: _job_pb2.JobSpec
    last: bool
    creation_id: str
    replace_for: str
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, spec: _Optional[_Union[_job_pb2.JobSpec, _Mapping]] = ..., last: bool = ..., creation_id: _Optional[str] = ..., replace_for: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.JobInfo
    def __init__(self, job: _Optional[_Union[_job_pb2.JobInfo, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.JobInfo
    def __init__(self, job: _Optional[_Union[_job_pb2.JobInfo, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GradientSummary(_message.Message):
    __slots__ = ("nonfinite", "nonfinite_unix_ms", "nonfinite_version", "nonfinite_worker", "nonfinite_parameter", "skipped_steps", "clipped_steps", "norm", "accumulated")
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_WORKER_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_PARAMETER_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_STEPS_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_STEPS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_FIELD_NUMBER: _ClassVar[int]
    nonfinite: int
    nonfinite_unix_ms: int
    nonfinite_version: int
    nonfinite_worker: str
    nonfinite_parameter: str
    skipped_steps: int
    clipped_steps: int
    norm: float
    accumulated: int
    def __init__(self, nonfinite: _Optional[int] = ..., nonfinite_unix_ms: _Optional[int] = ..., nonfinite_version: _Optional[int] = ..., nonfinite_worker: _Optional[str] = ..., nonfinite_parameter: _Optional[str] = ..., skipped_steps: _Optional[int] = ..., clipped_steps: _Optional[int] = ..., norm: _Optional[float] = ..., accumulated: _Optional[int] = ...) -> None: ...

class JobSummary(_message.Message):
    __slots__ = ("name", "algorithm", "policy", "version", "groups", "parameters", "elements", "workers", "pushes", "rejections", "planned_bytes", "created_unix_ms", "failure", "gradients", "ephemeral", "stepped_unix_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    STEPPED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    algorithm: str
    policy: _job_pb2.Policy
    version: _job_pb2.JobVersion
    groups: int
    parameters: int
    elements: int
    workers: int
    pushes: int
    rejections: int
    planned_bytes: int
    created_unix_ms: int
    failure: str
    gradients: GradientSummary
    ephemeral: bool
    stepped_unix_ms: int
    def __init__(self, name: _Optional[str] = ..., algorithm: _Optional[str] = ..., policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ..., groups: _Optional[int] = ..., parameters: _Optional[int] = ..., elements: _Optional[int] = ..., workers: _Optional[int] = ..., pushes: _Optional[int] = ..., rejections: _Optional[int] = ..., planned_bytes: _Optional[int] = ..., created_unix_ms: _Optional[int] = ..., failure: _Optional[str] = ..., gradients: _Optional[_Union[GradientSummary, _Mapping]] = ..., ephemeral: bool = ..., stepped_unix_ms: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobSummary]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobSummary, _Mapping]]] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobSummary
    def __init__(self, job: _Optional[_Union[JobSummary, _Mapping]] = ...) -> None: ...

class AddGroupRequest(_message.Message):
    __slots__ = ("job", "group", "last", "frames")
    JOB_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    job: str
    group: _job_pb2.GroupSpec
    last: bool
    frames: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Frame]
    def __init__(self, job: _Optional[str] = ..., group: _Optional[_Union[_job_pb2.GroupSpec, _Mapping]] = ..., last: bool = ..., frames: _Optional[_Iterable[_Union[_tensor_pb2.Frame, _Mapping]]] = ...) -> None: ...

class AddGroupResponse(_message.Message):
    __slots__ = ("group", "created", "version")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    group: _job_pb2.GroupInfo
    created: bool
    version: _job_pb2.JobVersion
    def __init__(self, group: _Optional[_Union[_job_pb2.GroupInfo, _Mapping]] = ..., created: bool = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class UpdateGroupRequest(_message.Message):
    __slots__ = ("job", "update")
    JOB_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    job: str
    update: _option_pb2.GroupUpdate
    def __init__(self, job: _Optional[str] = ..., update: _Optional[_Union[_option_pb2.GroupUpdate, _Mapping]] = ...) -> None: ...

class UpdateGroupResponse(_message.Message):
    __slots__ = ("options", "version")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    options: _option_pb2.GroupOptions
    version: _job_pb2.JobVersion
    def __init__(self, options: _Optional[_Union[_option_pb2.GroupOptions, _Mapping]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class UpdateJobRequest(_message.Message):
    __slots__ = ("job", "options", "expected_revision")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _option_pb2.OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_option_pb2.OptionValue, _Mapping]] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    job: str
    options: _containers.MessageMap[str, _option_pb2.OptionValue]
    expected_revision: int
    def __init__(self, job: _Optional[str] = ..., options: _Optional[_Mapping[str, _option_pb2.OptionValue]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class UpdateJobResponse(_message.Message):
    __slots__ = ("options", "version")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    options: _option_pb2.JobOptions
    version: _job_pb2.JobVersion
    def __init__(self, options: _Optional[_Union[_option_pb2.JobOptions, _Mapping]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("job", "policy")
    JOB_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    job: str
    policy: _job_pb2.Policy
    def __init__(self, job: _Optional[str] = ..., policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: _job_pb2.Policy
    version: _job_pb2.JobVersion
    def __init__(self, policy: _Optional[_Union[_job_pb2.Policy, _Mapping]] = ..., version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...

class WaitDurableRequest(_message.Message):
    __slots__ = ("job", "version")
    JOB_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    job: str
    version: int
    def __init__(self, job: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class WaitDurableResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _job_pb2.JobVersion
    def __init__(self, version: _Optional[_Union[_job_pb2.JobVersion, _Mapping]] = ...) -> None: ...
