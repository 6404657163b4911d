"""Pushes and pulls: their headers and results."""

from dataclasses import dataclass

from optd_wire.values.jobs import JobVersion
from optd_wire.values.options import EffectiveOptions, GroupOptions, GroupUpdate
from optd_wire.values.shared_memory import SharedGradient, SharedWeights


@dataclass(frozen=True, slots=True)
class PushHeader:
    """The identity of a push, the version that its gradients are of, and changes of options to apply with it."""

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
    durable: bool = False
    fragment: int = 0


@dataclass(frozen=True, slots=True)
class GroupNorms:
    """The norms of a group's gradient and update in one step; an empty `group` means all groups together."""

    group: str
    gradient: float
    update: float


@dataclass(frozen=True, slots=True)
class PushResult:
    """The result of a push.

    `options` is empty if the caller's known revision is current. `accumulated` counts the pushes that wait for a step
    of several pushes. A step is `skipped` because of a NaN, and `unfinished` if the algorithm needs loss and gradients
    at the new weights. `applied_version` is 0 if a flush had nothing to flush. `pushes` is how many pushes the round
    had.
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
    pushes: int = 0

    @property
    def dropped(self) -> str:
        """Why the gradient counts in no step; empty if it counts."""
        return ""

    @property
    def nothing_pending(self) -> bool:
        """Whether this was a flush that had nothing to flush, so that there was no step."""
        return self.applied_version == 0 and not self.skipped and not self.dropped

    @property
    def norm(self) -> GroupNorms | None:
        """The norms over all groups; None if the result has none."""
        return next((found for found in self.norms if not found.group), None)

    @property
    def group_norms(self) -> dict[str, GroupNorms]:
        """The norms of each group by its name; empty if the result has none."""
        return {found.group: found for found in self.norms if found.group}


@dataclass(frozen=True, slots=True)
class PullResult:
    """The result of a pull; frames follow unless it is `not_modified` or the weights are `shared`."""

    version: JobVersion
    not_modified: bool
    options: tuple[GroupOptions, ...] = ()
    shared: SharedWeights | None = None
