"""Workers: the reply to a join, and what the server reports about each worker."""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that has joined the job, and its lease."""

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
    speed: float = 0.0
