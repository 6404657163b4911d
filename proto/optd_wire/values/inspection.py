"""What can be seen of a server and its jobs: statistics, rejections, limits, status."""

from dataclasses import dataclass, field

from optd_wire.values.jobs import GroupSummary, JobSummary
from optd_wire.values.options import Options
from optd_wire.values.parameters import ParameterInfo
from optd_wire.values.workers import WorkerInfo


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of an array; extremes, mean, deviation and histogram leave out elements that are not finite."""

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
    """Statistics of one parameter's `weights`, `gradient` or state."""

    field: str
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class ParameterReport:
    """A parameter, its step count, and the statistics that were asked for."""

    parameter: ParameterInfo
    steps: int
    fields: tuple[FieldStatistics, ...] = ()
    overrides: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A push or change that the server refused."""

    unix_ms: int
    worker: str
    reason: str
    message: str
    version: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that a server keeps to."""

    max_message_bytes: int
    max_requests: int
    max_streams_per_connection: int
    max_memory_bytes: int
    max_inflight_bytes: int
    max_job_inflight_bytes: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The state of a server: version, load, limits, security."""

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
class RoundInfo:
    """Pushes that a job holds for a later step, and what they wait for.

    `opened_unix_ms` is 0 if no gradient is there yet. `missing` has the workers that are waited for, some of which may
    be lost; `places` counts the pushes that may come from any worker.
    """

    unix_ms: int = 0
    step: int = 0
    opened_unix_ms: int = 0
    arrived: tuple[str, ...] = ()
    arriving: tuple[str, ...] = ()
    missing: tuple[WorkerInfo, ...] = ()
    places: int = 0
    deadline_unix_ms: int = 0
    release: str = ""
    fragment: int = 0


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job with its groups, its workers and its open rounds at one moment, as `WatchJob` sends it."""

    job: JobSummary
    groups: tuple[GroupSummary, ...]
    workers: tuple[WorkerInfo, ...]
    unix_ms: int
    rounds: tuple[RoundInfo, ...] = ()
