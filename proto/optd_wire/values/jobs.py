"""Jobs and groups: specs (as their creator declares them), infos (as the server holds them) and summaries."""

from dataclasses import dataclass, field

from optd_wire.values.options import GroupOptions, JobOptions, Options
from optd_wire.values.parameters import ParameterInfo, ParameterSpec
from optd_wire.values.policies import Policy


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group as the job's creator declares it; `options` override its defaults."""

    name: str
    options: Options
    parameters: tuple[ParameterSpec, ...]
    algorithm: str = ""
    """Empty: the job's."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job as its creator declares it.

    Without a policy, a new job gets `Async()`, and a worker that joins accepts the policy of the job. The server
    deletes an `ephemeral` job after its last worker.
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
    """The progress of a job: steps applied, steps that survive a crash, changes that are not steps."""

    version: int = 0
    durable_version: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class AverageInfo:
    """An average of the weights that a job keeps, and the number of versions in it."""

    name: str
    updates: int


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group as the server holds it."""

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
    """Counts of a job's unusual gradients, with the place of the last NaN or infinity."""

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
    """A line about a job."""

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
class GroupSummary:
    """A line about a group."""

    index: int
    options: GroupOptions
    parameters: int
    elements: int
    dtypes: tuple[str, ...]
    min_steps: int
    max_steps: int
    effective: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot of a job on the server's disk."""

    version: int
    written_unix_ms: int
    bytes: int
    """Of all its files, of which some may be shared with other snapshots."""
