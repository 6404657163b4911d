"""The nouns of the contract as plain frozen values, so that neither engine nor client handles generated messages.

Each class has the name and the fields of its message; `optd_wire.convert` checks that when it is imported.
Mappings and tuples are not copied: whoever builds a value gives them away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

OptionValue = bool | int | float | str | None | tuple[float | None, ...]
Options = Mapping[str, OptionValue]

WEIGHTS = "weights"
GRADIENT = "gradient"
STEP = "step"


@dataclass(frozen=True, slots=True)
class FlatRange:
    """Elements `offset` to `offset + count` of a group's flat buffer; `group` is its index."""

    group: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter as its creator declares it; `dtype` is a key of `optd_wire.dtypes.DTYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many elements it has; 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """One group as its creator declares it; `options` override its defaults. Its `algorithm` is the job's if empty."""

    name: str
    options: Options
    parameters: tuple[ParameterSpec, ...]
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class Async:
    """A step for every push, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Sync:
    """A step for every round: the mean of one push of each of `workers` workers."""

    workers: int


Policy = Async | Sync


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job as its creator declares it; without a policy, `Async()` or that of the job which is there.

    An `ephemeral` job ends with its workers.
    """

    name: str
    algorithm: str
    defaults: Options
    groups: tuple[GroupSpec, ...]
    policy: Policy | None = None
    options: Options = field(default_factory=dict)
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class JobVersion:
    """Where a job stands: steps applied, steps that survive a crash, changes that are not steps."""

    version: int = 0
    durable_version: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class GroupUpdate:
    """A change of some options of one group, made on `expected_revision` of them (None: on whatever they are)."""

    group: str
    options: Options
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """The resolved options of one group and its algorithm, with the job's version at which they took effect."""

    group: str
    options: Options
    revision: int = 0
    since_version: int = 0
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The resolved options of a job as a whole, with the job's version at which they took effect."""

    options: Options = field(default_factory=dict)
    revision: int = 0
    since_version: int = 0


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """A change of options of a job as a whole, made on `expected_revision` of them (None: on whatever they are)."""

    job: str
    options: Options
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True)
class AverageInfo:
    """An average of the weights that a job keeps, and how many versions have entered it."""

    name: str
    updates: int


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter as the server holds it; `offset` is its first element in the group's flat buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size(self) -> int:
        """How many elements it has; 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """One group as the server holds it."""

    index: int
    options: GroupOptions
    parameters: tuple[ParameterInfo, ...]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the server holds it."""

    name: str
    algorithm: str
    defaults: Options
    policy: Policy
    groups: tuple[GroupInfo, ...]
    version: JobVersion
    options: JobOptions = field(default_factory=JobOptions)
    averages: tuple[AverageInfo, ...] = ()
    ephemeral: bool = False
    stepped_unix_ms: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True)
class GradientSummary:
    """What has become of the gradients of a job: counts, and the last NaN or infinity."""

    nonfinite: int = 0
    nonfinite_unix_ms: int = 0
    nonfinite_version: int = 0
    nonfinite_worker: str = ""
    nonfinite_parameter: str = ""
    skipped_steps: int = 0
    clipped_steps: int = 0
    norm: float = 0.0
    accumulated: int = 0


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One line about a job."""

    name: str
    algorithm: str
    policy: Policy
    version: JobVersion
    groups: int
    parameters: int
    elements: int
    workers: int
    pushes: int
    rejections: int
    planned_bytes: int
    created_unix_ms: int
    failure: str = ""
    gradients: GradientSummary = field(default_factory=GradientSummary)
    ephemeral: bool = False
    stepped_unix_ms: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A server process and the flat ranges it holds; an empty address is the server that answers."""

    address: str
    ranges: tuple[FlatRange, ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """What a worker gets when it joins: its epoch and lease, and the job as it stands."""

    epoch: int
    lease_ms: int
    job: JobInfo
    shards: tuple[Shard, ...]
    max_message_bytes: int
    previous_epoch: int = 0
    previous_sequence: int = 0
    other_workers: int = 0


@dataclass(frozen=True, slots=True)
class SharedSegment:
    """Where elements of a group lie in a region of shared memory."""

    range: FlatRange
    byte_offset: int


@dataclass(frozen=True, slots=True)
class SharedExtent:
    """Groups whose elements lie in one region of shared memory."""

    bytes: int
    segments: tuple[SharedSegment, ...]


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that a worker shares with the server: the Unix socket that hands it over, and what lies where."""

    path: str
    ticket: bytes
    extents: tuple[SharedExtent, ...]
    gradient_extents: tuple[SharedExtent, ...]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that the job has seen, and its lease."""

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


@dataclass(frozen=True, slots=True)
class SharedGradient:
    """A gradient in memory that the worker shares: of every parameter (`whole`), or in some ranges."""

    whole: bool
    ranges: tuple[FlatRange, ...] = ()


@dataclass(frozen=True, slots=True)
class PushHeader:
    """Who pushes what: identity of the push, the version it was computed on, changes of options that ride along."""

    job: str
    worker: str
    epoch: int
    sequence: int
    base_version: int
    updates: tuple[GroupUpdate, ...] = ()
    known_revision: int = 0
    shared: SharedGradient | None = None
    weight: float | None = None
    loss_scale: float | None = None
    loss: float | None = None
    begins: bool = False
    flush: bool = False
    norms: bool = False


@dataclass(frozen=True, slots=True)
class GroupNorms:
    """The norms of a group's gradient and update in one step; over all groups where `group` is empty."""

    group: str
    gradient: float
    update: float


@dataclass(frozen=True, slots=True)
class EffectiveOptions:
    """What schedules make of options of a group in the step that comes next."""

    group: str
    options: Options


@dataclass(frozen=True, slots=True)
class PushResult:
    """What became of a push; `options` are there only where the caller's known revision was not the current one.

    `accumulated` pushes wait for their step, where that takes several; a step was `skipped` for a NaN; an `unfinished`
    one wants loss and gradient at the new weights. `applied_version` is 0 where a flush found nothing added up.
    """

    version: JobVersion
    applied_version: int
    staleness: int
    repeat: bool
    options: tuple[GroupOptions, ...] = ()
    accumulated: int = 0
    skipped: bool = False
    unfinished: bool = False
    clipped: bool = False
    norms: tuple[GroupNorms, ...] = ()
    effective: tuple[EffectiveOptions, ...] = ()

    @property
    def nothing_pending(self) -> bool:
        """Whether it was a flush that found nothing added up, so that no step was made."""
        return self.applied_version == 0 and not self.skipped

    @property
    def norm(self) -> GroupNorms | None:
        """The norms over all groups; None where they are not told."""
        return next((found for found in self.norms if not found.group), None)

    @property
    def group_norms(self) -> dict[str, GroupNorms]:
        """The norms of each group by its name; empty where they are not told."""
        return {found.group: found for found in self.norms if found.group}


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """Weights in regions of shared memory; `in_place` if they stay there until the worker's next call."""

    regions: tuple[int, ...]
    in_place: bool


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull read; nothing follows where it is `not_modified`, or where the weights are `shared`."""

    version: JobVersion
    not_modified: bool
    options: tuple[GroupOptions, ...] = ()
    shared: SharedWeights | None = None


@dataclass(frozen=True, slots=True)
class StateShape:
    """Shape and dtype of one parameter's state, in a field where these are not the parameters' own."""

    sizes: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class StateEntries:
    """Which parameters of a group have the state `field`, in the order of the group's list, and in which shapes."""

    field: str
    present: tuple[bool, ...]
    shapes: tuple[StateShape, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupState:
    """Steps of each parameter of a group, and which states it has; `group` is its index."""

    group: int
    steps: tuple[int, ...]
    entries: tuple[StateEntries, ...]


@dataclass(frozen=True, slots=True)
class ReadStateResult:
    """What a read of state covers; the numbers follow as frames."""

    version: JobVersion
    groups: tuple[GroupState, ...]
    averages: tuple[AverageInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class WriteStateHeader:
    """Who writes state, and the steps and entries that go with the numbers; `updates` take effect with them."""

    job: str
    worker: str
    epoch: int
    groups: tuple[GroupState, ...]
    averages: tuple[AverageInfo, ...] = ()
    updates: tuple[GroupUpdate, ...] = ()
    if_alone_at: JobVersion | None = None
    write_id: str = ""
    beside_others: bool = False


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option as it is declared."""

    name: str
    kind: str
    default_value: OptionValue
    range: str
    doc: str
    nullable: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AlgorithmInfo:
    """One algorithm that the server has."""

    name: str
    title: str
    options: tuple[OptionInfo, ...]
    state: tuple[str, ...]
    rules: tuple[str, ...]
    doc: str = ""
    needs_closure: bool = False
    shaped_state: tuple[str, ...] = ()
    package: str = ""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One line about a group."""

    index: int
    options: GroupOptions
    parameters: int
    elements: int
    dtypes: tuple[str, ...]
    min_steps: int
    max_steps: int
    effective: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers about numbers; extremes, mean, deviation and histogram are of the finite elements."""

    count: int
    zeros: int
    nonfinite: int
    min: float
    max: float
    mean: float
    std: float
    norm: float
    histogram_edges: tuple[float, ...] = ()
    histogram_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FieldStatistics:
    """Statistics of `weights`, `gradient` or a state of one parameter."""

    field: str
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class ParameterReport:
    """One parameter, its steps, and statistics where they were asked for."""

    parameter: ParameterInfo
    steps: int
    fields: tuple[FieldStatistics, ...] = ()
    overrides: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A push or change that was refused."""

    unix_ms: int
    worker: str
    reason: str
    message: str
    version: int


@dataclass(frozen=True, slots=True)
class OptionChange:
    """One option of a group, or of the job as a whole where `group` is empty, from `version` on.

    `worker` is the one whose push brought it; empty where it came by a call of its own.
    """

    unix_ms: int
    version: int
    group: str
    option: str
    before: OptionValue
    after: OptionValue
    worker: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server promises to keep within."""

    max_message_bytes: int
    max_requests: int
    max_streams_per_connection: int
    max_memory_bytes: int
    max_inflight_bytes: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server at a glance."""

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
    rejections_without_job: int = 0


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job with its groups and workers at one moment, as `WatchJob` tells it."""

    job: JobSummary
    groups: tuple[GroupSummary, ...]
    workers: tuple[WorkerInfo, ...]
    unix_ms: int
