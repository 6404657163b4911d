"""The seam between a session and the way its calls travel.

Everything above speaks plain values of `optd_wire.values`; a transport turns them into calls. A test can put a
transport of its own in its place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, Outgoing, Received
from optd_wire.rows import Ids, RowFrame
from optd_wire.values import (
    AlgorithmInfo,
    GroupInfo,
    GroupOptions,
    GroupSpec,
    GroupSummary,
    GroupUpdate,
    JobInfo,
    JobOptions,
    JobReport,
    JobSpec,
    JobSummary,
    JobUpdate,
    JobVersion,
    Membership,
    OptionChange,
    ParameterReport,
    PullResult,
    PushHeader,
    PushResult,
    ReadStateResult,
    Rejection,
    ServerStatus,
    SharedMemory,
    WorkerInfo,
    WriteStateHeader,
)

HEADER_BYTES = 8192
"""Room for what a message has besides its frames."""
Source = Callable[[], Iterator[Sequence[Outgoing]]]
"""Numbers to send: each call begins anew and gives lists of frames, each of a size that suits one message.

The arrays in them belong to the caller and must stay as they are until the transport's method has returned.
"""
Sink = Callable[[Sequence[Frame]], None]
"""Takes received numbers, the frames of one message at a time. Their payloads are valid during the call only."""
StepSink = Callable[[Sequence[Received]], None]
"""As `Sink`, for weights of which only some rows may come."""
StateSink = Callable[[ReadStateResult], Sink]
"""Learns what state is to come, and returns what takes it. An attempt that is made again begins with this."""


class OptionHistory(tuple[OptionChange, ...]):
    """Changes of options, oldest first; `forgotten` tells how many more there have been, which the server let go."""

    forgotten: int

    def __new__(cls, changes: Iterable[OptionChange] = (), forgotten: int = 0) -> "OptionHistory":
        """Both, as one value."""
        made = super().__new__(cls, changes)
        made.forgotten = forgotten
        return made


class GroupInspection(NamedTuple):
    """A group and its parameters; and of statistics of a gradient the version that its step led to.

    None: there is no gradient. The note says why, or why its numbers may be other ones by now.
    """

    group: GroupSummary
    parameters: tuple[ParameterReport, ...]
    gradient_version: int | None = None
    gradient_note: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What a reader has already."""

    version: int
    revision: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """How weights are wanted: not at all, in an encoding (empty: unchanged), in shared memory, there in place.

    With `changed` those that have not changed since the push's base version may be left out.
    """

    none: bool = False
    encoding: str = ""
    shared: bool = False
    in_place: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Who reads what, how it is wanted, and what the reader has already; `groups` and `parameters` empty: all.

    `weights` is the name of an average that is wanted instead of the weights themselves.
    """

    job: str
    worker: str = ""
    epoch: int = 0
    known: Known | None = None
    delivery: Delivery = Delivery()
    groups: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    weights: str = ""


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Which rows of which parameter, and the encoding that they are wanted in; empty: unchanged.

    `weights` as in `PullRequest`.
    """

    job: str
    parameter: str
    ids: Ids
    encoding: str = ""
    weights: str = ""


Names = Sequence[str] | str
"""Some names, or one."""


def names_of(given: Names) -> tuple[str, ...]:
    """Names as callers give them: several, or one by itself. Raises `InvalidRequest` for what is no name."""
    if not isinstance(given, Iterable):
        raise InvalidRequest(problem=f"groups and parameters are pulled by name, got {given!r}; () is all of them")
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise InvalidRequest(problem=f"groups and parameters are pulled by name, got {name!r}")
    return names


class Transport(ABC):
    """One connection to one server. Safe to use from several threads.

    Every method blocks until the answer is there or `timeout` seconds have passed, and raises an `OptdError`:
    the one that the server raised, or `ConnectionLost`, `DeadlineExceeded`, `MessageTooLarge`, `UnexpectedStatus`.
    No method retries.
    """

    address: str

    @abstractmethod
    def close(self) -> None:
        """Ends the connection; calls under way fail."""

    # Jobs

    @abstractmethod
    def create_job(
        self,
        spec: JobSpec,
        weights: Source,
        timeout: float,
        *,
        creation_id: str = "",
        replace_for: str | None = None,
    ) -> JobInfo:
        """Creates a job with its weights; a repeat with the same `creation_id` finds it there.

        `replace_for` names the worker for which a job of the same name is deleted first.
        """

    @abstractmethod
    def get_job(self, job: str, timeout: float) -> JobInfo:
        """Describes a job."""

    @abstractmethod
    def list_jobs(self, timeout: float) -> tuple[JobSummary, ...]:
        """Lists all jobs."""

    @abstractmethod
    def delete_job(self, job: str, timeout: float) -> JobSummary:
        """Deletes a job; tells what it was."""

    @abstractmethod
    def add_group(self, job: str, group: GroupSpec, weights: Source, timeout: float) -> GroupInfo:
        """Adds a group, or finds that the job has it."""

    @abstractmethod
    def update_group(self, job: str, update: GroupUpdate, timeout: float) -> tuple[GroupOptions, JobVersion]:
        """Changes options of a group."""

    @abstractmethod
    def update_job(self, update: JobUpdate, timeout: float) -> tuple[JobOptions, JobVersion]:
        """Changes options of a job as a whole."""

    # Workers

    @abstractmethod
    def join(
        self,
        job: str,
        worker: str,
        spec: JobSpec | None,
        wait_seconds: float,
        timeout: float,
        *,
        messages_only: bool = False,
        job_id: str = "",
    ) -> Membership:
        """Takes part in a job, once it is whole; `messages_only` says that this worker will share no memory.

        `job_id` is that of the job that it has joined before; raises `JobReplaced` where it is another one by now.
        """

    @abstractmethod
    def renew_lease(self, job: str, worker: str, epoch: int, timeout: float) -> None:
        """Keeps a lease."""

    @abstractmethod
    def leave(self, job: str, worker: str, epoch: int, timeout: float) -> None:
        """Gives a lease up."""

    @abstractmethod
    def open_shared_memory(self, job: str, worker: str, epoch: int, timeout: float) -> SharedMemory:
        """Asks for memory to share with the server."""

    @abstractmethod
    def confirm_shared_memory(
        self, job: str, worker: str, epoch: int, timeout: float, *, token: bytes = b"", problem: str = ""
    ) -> None:
        """Proves by a token that was read there that the memory is the same, or tells why it cannot be used."""

    @abstractmethod
    def list_workers(self, job: str, timeout: float) -> tuple[WorkerInfo, ...]:
        """Lists the workers of a job."""

    # Training

    @abstractmethod
    def push(self, header: PushHeader, gradients: Source, timeout: float) -> PushResult:
        """Pushes gradients; waits until they are part of a step."""

    @abstractmethod
    def pull(self, request: PullRequest, weights: Sink, timeout: float) -> PullResult:
        """Reads the current weights; an empty worker reads without taking part."""

    @abstractmethod
    def pull_rows(self, request: RowsRequest, rows: Callable[[list[RowFrame]], None], timeout: float) -> JobVersion:
        """Reads rows of a parameter's current weights; `rows` is given those of one message at a time."""

    @abstractmethod
    def step(
        self, header: PushHeader, gradients: Source, delivery: Delivery, weights: StepSink, timeout: float
    ) -> tuple[PushResult, PullResult]:
        """Pushes and pulls in one call, on a stream that stays open. One step at a time: others wait."""

    @abstractmethod
    def release(self, job: str, worker: str, epoch: int) -> None:
        """Ends the hold on shared weights. Does not wait for the server."""

    # State

    @abstractmethod
    def read_state(
        self,
        job: str,
        fields: tuple[str, ...],
        into: StateSink,
        timeout: float,
        *,
        group: str = "",
        parameter: str = "",
    ) -> ReadStateResult:
        """Reads fields of one version: `into` is called with the result, and returns what takes the frames."""

    @abstractmethod
    def write_state(
        self, header: WriteStateHeader, numbers: Source, timeout: float
    ) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        """Replaces fields and options; tells the options of all groups."""

    # Inspection

    @abstractmethod
    def server_status(self, timeout: float) -> ServerStatus:
        """Describes the server."""

    @abstractmethod
    def list_algorithms(self, timeout: float) -> tuple[AlgorithmInfo, ...]:
        """Describes every algorithm."""

    @abstractmethod
    def list_groups(self, job: str, timeout: float) -> tuple[GroupSummary, ...]:
        """Lists the groups of a job."""

    @abstractmethod
    def inspect_group(
        self,
        job: str,
        group: str,
        timeout: float,
        *,
        parameter: str = "",
        statistics: bool = False,
        bins: int = 0,
    ) -> GroupInspection:
        """Describes the parameters of a group."""

    @abstractmethod
    def list_rejections(self, job: str, timeout: float) -> tuple[dict[str, int], tuple[Rejection, ...]]:
        """Tells what a job has refused: counts by reason, and the last ones."""

    @abstractmethod
    def list_option_changes(self, job: str, group: str, timeout: float) -> OptionHistory:
        """Tells which options of a group, or of the whole job where it is "", have changed; oldest first."""

    @abstractmethod
    def watch_job(self, job: str, interval_seconds: float) -> Iterator[JobReport]:
        """Reports a job whenever it has moved on, without end; closing the iterator ends the call."""

    @abstractmethod
    def health(self, timeout: float) -> bool:
        """Whether the server says of itself that it serves."""
