"""The shape of a policy: what happens to pushes and workers goes in, decisions come out.

A policy is pure bookkeeping. It sees identities, never gradients or callers, and reads no clock: every event brings the
time. Whoever asks carries all decisions out, in their order, before the next event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from optd_wire.errors import OptdError


@dataclass(frozen=True, slots=True)
class PushId:
    """One push of one worker."""

    worker: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class MakeStep:
    """Make a step of these pushes, which are reduced in this order. The policy knows nothing of them any more."""

    pushes: tuple[PushId, ...]


@dataclass(frozen=True, slots=True)
class HoldPush:
    """Keep a push until a later decision names it."""

    push: PushId
    waits_for: str
    """What it waits for, as people read it: "pushes of 2 more workers"."""


@dataclass(frozen=True, slots=True)
class RefusePush:
    """Answer a push with an error. The policy knows nothing of it any more."""

    push: PushId
    error: OptdError


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at this time, in seconds of the monotonic clock, unless a later decision names another one."""

    seconds: float


Decision: TypeAlias = MakeStep | HoldPush | RefusePush | WakeAt
Decisions: TypeAlias = Sequence[Decision]
NONE: Decisions = ()


class Policy(Protocol):
    """Decides which pushes become a step together.

    `now` is the time in seconds of a monotonic clock. Every push that is offered is held, or named by `MakeStep` or
    `RefusePush` once; until then `withdrawn` may take it back. Of each worker one push at a time is held.
    """

    @property
    def slots(self) -> int:
        """How many gradients, whole or on their way, are kept at once."""

    @property
    def most(self) -> int:
        """Of how many pushes a step is made at most."""

    def offered(self, push: PushId, now: float) -> Decisions:
        """A push has been announced. Its gradient is still with its sender."""

    def arrived(self, push: PushId, now: float) -> Decisions:
        """The gradient of a push is there, and all of it."""

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """A push that is held has been taken back."""

    def joined(self, worker: str, now: float) -> Decisions:
        """A worker has joined, perhaps anew."""

    def left(self, worker: str, now: float) -> Decisions:
        """A worker has left on its own word. Its push has been withdrawn before."""

    def expired(self, worker: str, now: float) -> Decisions:
        """The lease of a worker has run out. Its push has been withdrawn before."""

    def tick(self, now: float) -> Decisions:
        """A time has come that `WakeAt` named, or has passed."""


class Indifferent:
    """The answers of a policy to what makes no difference to it."""

    def arrived(self, push: PushId, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def joined(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def left(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def expired(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def tick(self, now: float) -> Decisions:
        """Nothing follows."""
        return NONE
