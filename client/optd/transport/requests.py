"""Plain values of calls that `optd_wire.values` does not have: what is asked, and what an inspection returns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optd_wire.errors import InvalidRequest
from optd_wire.row_frames import Ids
from optd_wire.values import AlgorithmInfo, GroupSummary, OptionChange, OptionInfo, ParameterReport, WorkerInfo


class OptionHistory(tuple[OptionChange, ...]):
    """Changes of options, oldest first; `forgotten` counts older ones that the server no longer keeps."""

    forgotten: int

    def __new__(cls, changes: Iterable[OptionChange] = (), forgotten: int = 0) -> "OptionHistory":
        """The changes, with how many are forgotten."""
        made = super().__new__(cls, changes)
        made.forgotten = forgotten
        return made


class WorkerList(tuple[WorkerInfo, ...]):
    """The workers of a job; `unix_ms` is the server's time at which they were as described."""

    unix_ms: int

    def __new__(cls, workers: Iterable[WorkerInfo] = (), unix_ms: int = 0) -> "WorkerList":
        """The workers, with the time."""
        made = super().__new__(cls, workers)
        made.unix_ms = unix_ms
        return made


class AlgorithmList(tuple[AlgorithmInfo, ...]):
    """The algorithms of a server, and the options that jobs and their groups have whatever the algorithm."""

    group_options: tuple[OptionInfo, ...]
    job_options: tuple[OptionInfo, ...]

    def __new__(
        cls,
        algorithms: Iterable[AlgorithmInfo] = (),
        group_options: Iterable[OptionInfo] = (),
        job_options: Iterable[OptionInfo] = (),
    ) -> "AlgorithmList":
        """All three, as one value."""
        made = super().__new__(cls, algorithms)
        made.group_options, made.job_options = tuple(group_options), tuple(job_options)
        return made


class GroupInspection(NamedTuple):
    """A group and its parameters.

    `gradient_version` is the version that the step of the reported gradient led to; None if there is no gradient. The
    note says why there is none, or why its numbers may have changed since.
    """

    group: GroupSummary
    parameters: tuple[ParameterReport, ...]
    gradient_version: int | None = None
    gradient_note: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """The version and revision that a reader holds."""

    version: int
    revision: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the server is to deliver weights: not at all, in an encoding (empty: unchanged), or in shared memory.

    `in_place` asks for shared weights that may be used where they lie. With `changed` the server may leave out weights
    that have not changed since the push's base version.
    """

    none: bool = False
    encoding: str = ""
    shared: bool = False
    in_place: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull: who reads, what the reader holds already, and which groups and parameters; both empty: all.

    `weights` names an average that is read instead of the weights themselves. The server waits up to `wait_seconds`
    until the job has come to `min_version`.
    """

    job: str
    worker: str = ""
    epoch: int = 0
    known: Known | None = None
    delivery: Delivery = Delivery()
    groups: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    weights: str = ""
    min_version: int = 0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Rows of one parameter, and the encoding in which they travel; empty: unchanged.

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
    """Reads names as callers give them: several, or one by itself. Raises `InvalidRequest` if one is no string."""
    if not isinstance(given, Iterable):
        raise InvalidRequest(problem=f"groups and parameters are pulled by name, got {given!r}; () is all of them")
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise InvalidRequest(problem=f"groups and parameters are pulled by name, got {name!r}")
    return names
