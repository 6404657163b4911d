"""The state of a job's parameters: the result of a read, the header of a write."""

from dataclasses import dataclass

from optd_wire.values.jobs import AverageInfo, JobVersion
from optd_wire.values.options import GroupUpdate

WEIGHTS = "weights"
GRADIENT = "gradient"
STEP = "step"


@dataclass(frozen=True, slots=True)
class StateShape:
    """The shape and dtype of one parameter's state, in a field whose shapes or dtypes differ from the parameters'."""

    sizes: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class StateEntries:
    """Which parameters of a group have the state `field`, and in which shapes, in the order of the group's list."""

    field: str
    present: tuple[bool, ...]
    shapes: tuple[StateShape, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupState:
    """The step count of each parameter of a group, and the states that it has; `group` is the group's index."""

    group: int
    steps: tuple[int, ...]
    entries: tuple[StateEntries, ...]


@dataclass(frozen=True, slots=True)
class ReadStateResult:
    """The result of a read of state; the numbers follow as frames."""

    version: JobVersion
    groups: tuple[GroupState, ...]
    averages: tuple[AverageInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class WriteStateHeader:
    """Who writes state, and the step counts and entries of the numbers; `updates` take effect together with them."""

    job: str
    worker: str
    epoch: int
    groups: tuple[GroupState, ...]
    averages: tuple[AverageInfo, ...] = ()
    updates: tuple[GroupUpdate, ...] = ()
    if_alone_at: JobVersion | None = None
    write_id: str = ""
    beside_others: bool = False
