"""Workers: the reply to a join, and what the server reports about each worker."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from optd_wire.values.jobs import JobInfo
from optd_wire.values.parameters import FlatRange


@dataclass(frozen=True, slots=True)
class Shard:
    """A server process and the flat ranges that it holds; an empty address means the server that answers."""

    address: str
    ranges: tuple[FlatRange, ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """The reply to a join: the worker's epoch and lease, and the job."""

    epoch: int
    lease_ms: int
    job: JobInfo
    shards: tuple[Shard, ...]
    max_message_bytes: int
    previous_epoch: int = 0
    previous_sequence: int = 0
    other_workers: int = 0


LEFT, EXPIRED, REPLACED, ROLLED_BACK = "left", "expired", "replaced", "rolled back"
"""How a worker's part in a job ended: it left, its lease ran out, another process took its name, the job went back."""


@dataclass(frozen=True, slots=True)
class StalenessSummary:
    """The spread of the staleness of a worker's recent pushes, in versions."""

    p50: int = 0
    p99: int = 0
    max: int = 0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that has joined the job, its lease, its process, and what its pushes have come to.

    `ended` is LEFT, EXPIRED, REPLACED or ROLLED_BACK, or empty; for an active worker it tells of the epoch before.
    """

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
    host: str = ""
    pid: int = 0
    joined_unix_ms: int = 0
    last_push_unix_ms: int = 0
    last_step_unix_ms: int = 0
    ended: str = ""
    ended_unix_ms: int = 0
    recent_staleness: StalenessSummary = StalenessSummary()
    rejections_by_reason: Mapping[str, int] = field(default_factory=dict)
    dropped_rounds: int = 0
    waiting_since_unix_ms: int = 0
