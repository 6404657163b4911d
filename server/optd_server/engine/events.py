"""The events of a job. Each one completely describes one change; the state of a job is the fold of its events.

An event is a frozen value that holds everything that came from outside: gradients as they are applied, times, and the
identity of each push. `apply` derives everything else from the state, always to the same bits. An event holds large
arrays by reference, so it costs no copy.
"""

from dataclasses import dataclass
from typing import TypeAlias

from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Gradient, Totals
from optd_wire.layout import GroupLayout
from optd_wire.values import AverageInfo, GroupOptions, GroupSpec, GroupState, JobOptions, JobSpec, OptionChange, Policy


@dataclass(frozen=True, slots=True)
class OptionEdits:
    """Options that take effect with an event."""

    groups: tuple[tuple[int, GroupOptions], ...] = ()
    """The index of each group that changes, with all of its options after the event."""
    job: JobOptions | None = None
    """The options of the job as a whole, if they change."""
    changes: tuple[OptionChange, ...] = ()
    """The changes as entries of the job's option history."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.groups) or self.job is not None


NO_EDITS = OptionEdits()


@dataclass(frozen=True, slots=True)
class Mark:
    """A push that an event settles. The reply to it follows from this mark and the state after the event."""

    worker: str
    epoch: int
    sequence: int
    staleness: int
    known_revision: int
    """The revision of the options that the worker knows. If it is current, the reply carries no options."""
    flush: bool = False
    norms: bool = False
    """Whether the reply carries norms."""
    checksum: int = 0
    """That of the push's content; see `rounds/digest.py`. 0: unknown."""
    fragment: int = 0
    """The part of the model that the push is of; 0: the whole model."""


@dataclass(frozen=True, slots=True)
class NonfiniteEntries:
    """The NaN and infinite entries of a push that was accepted in spite of them."""

    worker: str
    count: int
    parameter: str
    """The parameter that holds the first of them."""
    wall: float
    """When the push was announced, in seconds since the Unix epoch."""


# Events: of steps


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """A step was taken: the job moves to its next version."""

    wall: float
    """When the last of its pushes was announced, in seconds since the Unix epoch."""
    pushes: tuple[Mark, ...]
    gradient: Gradient | None
    """The gradient as the algorithm takes it: reduced, combined with the accumulated rounds, and clipped. None: `apply`
    makes the gradient of the accumulated rounds, and clips it."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()
    loss: float | None = 0.0
    """The loss of an evaluation by an iterative algorithm; None: its gradient was not finite."""
    begins: bool = False
    """Whether an iterative algorithm starts a new step, and abandons an unfinished one."""
    norm: float = 0.0
    """The norm of the whole gradient before clipping; 0 if no bound needed it."""
    is_clipped: bool = False
    norms: tuple[float, ...] | None = None
    """The norm of each group's gradient before clipping, if a push asked for norms or a bound needed them."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundAdded:
    """A round was added to the accumulated rounds, which the next step will use."""

    pushes: tuple[Mark, ...]
    gradient: Gradient
    """The sum of the round's gradients, each times the weight of its push."""
    weights: Totals
    """For each parameter, the sum of the weights of the pushes that have it whole."""
    row_weights: tuple[float, ...] = ()
    """For each entry of the gradient's rows, the sum of the weights of the pushes that have such rows."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Pushes were settled without changing weights: a round with a NaN, or a flush without accumulated rounds."""

    pushes: tuple[Mark, ...]
    nothing_pending: bool = False
    """Whether a flush found no accumulated rounds. Otherwise a gradient had entries that are not finite."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()


# Events: of options, groups, state


@dataclass(frozen=True, slots=True)
class OptionsChanged:
    """Options were changed between two steps."""

    edits: OptionEdits


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """The policy was replaced."""

    policy: Policy
    changes: tuple[OptionChange, ...] = ()
    """The change as an entry of the job's option history."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupAdded:
    """A group was appended to the job, with its weights."""

    spec: GroupSpec
    weights: FlatBuffers
    """One extent that holds this group alone. The job owns it from now on."""


@dataclass(frozen=True, slots=True, eq=False)
class FieldWritten:
    """New numbers of one field: weights, an average, or state."""

    field: str
    layouts: tuple[GroupLayout, ...] | None
    """By group, the layout of the numbers, if it differs from that of the weights."""
    buffers: FlatBuffers
    ranges: tuple[tuple[int, int, int, int], ...]
    """The ranges that were written: extent, slab, first element, and the end, which is exclusive."""
    parameters: tuple[tuple[int, int], ...] = ()
    """If there are `layouts`: the parameters that were written whole, as group and index in the group."""


@dataclass(frozen=True, slots=True, eq=False)
class StateReplaced:
    """A worker wrote weights, averages, state or step counts, and perhaps options that take effect with them."""

    worker: str
    epoch: int
    write_id: str
    groups: tuple[GroupState, ...]
    averages: tuple[AverageInfo, ...]
    fields: tuple[FieldWritten, ...]
    edits: OptionEdits = NO_EDITS


# Events: of workers, and of the job as a whole


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker joined under a new epoch."""

    worker: str
    epoch: int
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """A worker left of its own accord."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Expired:
    """The lease of a worker ran out."""

    worker: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """The job went back to an earlier version, and all of its workers must join anew.

    What has happened after that version is unknown here, but workers know of it. So the numbers that they were given
    then are not given again.
    """

    why: str
    epochs: int
    """How many epochs are skipped."""
    revisions: int
    """How many revisions are skipped."""


@dataclass(frozen=True, slots=True, eq=False)
class Created:
    """A job was created, with all of its weights."""

    spec: JobSpec
    policy: Policy
    id: str
    wall: float
    first_epoch: int
    """The epochs of the job's workers are higher than this."""
    weights: FlatBuffers
    """One extent that holds all groups. The job owns it from now on."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The job was deleted."""


Event: TypeAlias = (
    Created
    | GroupAdded
    | Joined
    | Left
    | Expired
    | Fenced
    | OptionsChanged
    | PolicyChanged
    | StateReplaced
    | RoundAdded
    | Stepped
    | Skipped
    | Deleted
)
