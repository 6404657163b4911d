"""What happens to a job, completely: the state of a job is the fold of its events.

An event is a frozen value. It holds whatever came from outside: gradients as they are applied, times, who pushed what
under which number. What follows from the state alone, `apply` works out again, to the same bits. Large arrays are held
by reference: an event costs no copy.
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
    """The groups that change, by index, with all of their options as they are afterwards."""
    job: JobOptions | None = None
    """The options of the job as a whole, if they change."""
    changes: tuple[OptionChange, ...] = ()
    """What changed, from what to what, when and by whom: lines of the job's history of options."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.groups) or self.job is not None


NO_EDITS = OptionEdits()


@dataclass(frozen=True, slots=True)
class Mark:
    """A push that an event deals with. With the state after the event, it gives the reply that the push gets."""

    worker: str
    epoch: int
    sequence: int
    staleness: int
    known_revision: int
    """The revision of the options that the worker knows: if it is the current one, the reply has no options."""
    flush: bool = False
    norms: bool = False
    """Whether the reply tells norms."""


@dataclass(frozen=True, slots=True)
class NonfiniteEntries:
    """Entries of a push that were NaN or infinite, and did not make it refused."""

    worker: str
    count: int
    parameter: str
    """The parameter of the first of them."""
    wall: float


# Events: of steps


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """A step: one version of the job leads to the next."""

    wall: float
    """When the last of its pushes was announced, in seconds since the epoch."""
    pushes: tuple[Mark, ...]
    gradient: Gradient | None
    """The gradient that the algorithm takes: reduced, averaged over accumulated rounds, clipped. None: the job's
    accumulated rounds are its gradient, and `apply` clips it."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()
    loss: float | None = 0.0
    """The loss of an evaluation that an iterative algorithm asked for; None: its gradient was not finite."""
    begins: bool = False
    """Whether an iterative algorithm begins a new step, and forgets one that is under way."""
    norm: float = 0.0
    """The norm over all groups before it was bounded; 0 if no bound asked for it."""
    is_clipped: bool = False
    norms: tuple[float, ...] | None = None
    """The norm of each group's gradient before it was bounded, if somebody asks for norms."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundAdded:
    """A round is added to those that make the next step."""

    pushes: tuple[Mark, ...]
    gradient: Gradient
    """The sum of the gradients of the round, each times the weight of its push if the step is a mean."""
    weights: Totals
    row_weights: tuple[float, ...] = ()
    """The same for each of the gradient's rows."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Pushes that are dealt with and change no weights: a round with a NaN, or a flush with nothing to step."""

    pushes: tuple[Mark, ...]
    nothing_pending: bool = False
    """Whether a flush found no accumulated rounds; otherwise a gradient had entries that are not finite."""
    edits: OptionEdits = NO_EDITS
    nonfinite: tuple[NonfiniteEntries, ...] = ()


# Events: of options, groups, state


@dataclass(frozen=True, slots=True)
class OptionsChanged:
    """Options change between two steps."""

    edits: OptionEdits


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy decides which pushes become a step."""

    policy: Policy


@dataclass(frozen=True, slots=True, eq=False)
class GroupAdded:
    """A group, the last one of the job from now on, with its weights."""

    spec: GroupSpec
    weights: FlatBuffers
    """One extent, of this group alone. The job owns it from now on."""


@dataclass(frozen=True, slots=True, eq=False)
class FieldWritten:
    """New numbers of one field: weights, an average, or state."""

    field: str
    layouts: tuple[GroupLayout, ...] | None
    """The flat buffers that the numbers lie in, if these are others than those of the weights."""
    buffers: FlatBuffers
    ranges: tuple[tuple[int, int, int, int], ...]
    """What was written: extent, slab, first element and the one behind the last."""
    parameters: tuple[tuple[int, int], ...] = ()
    """The parameters that were written whole, by group and place in it, if `layouts` are there."""


@dataclass(frozen=True, slots=True, eq=False)
class StateReplaced:
    """A worker has written weights, averages, state or step counts; options take effect with them."""

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
    """A worker has joined, under a new epoch."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Left:
    """A worker has left on its own word."""

    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Expired:
    """The lease of a worker has ended without its word."""

    worker: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Created:
    """A job exists from now on, with all of its weights."""

    spec: JobSpec
    policy: Policy
    id: str
    wall: float
    first_epoch: int
    """Epochs of the job begin behind it."""
    weights: FlatBuffers
    """One extent of all groups. The job owns it from now on."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The job exists no more."""


Event: TypeAlias = (
    Created
    | GroupAdded
    | Joined
    | Left
    | Expired
    | OptionsChanged
    | PolicyChanged
    | StateReplaced
    | RoundAdded
    | Stepped
    | Skipped
    | Deleted
)
