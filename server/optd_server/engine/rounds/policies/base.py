"""The interface of a policy: events of pushes and workers go in, decisions come out.

A policy is pure bookkeeping. It sees identities, never gradients or callers, and reads no clock: every call passes the
time. The caller carries out all decisions, in order, before its next call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from optd_wire.errors import OptdError


@dataclass(frozen=True, slots=True)
class PushId:
    """The identity of a push."""

    worker: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class MakeStep:
    """Take a step with these pushes, reduced in this order. The policy has forgotten them."""

    pushes: tuple[PushId, ...]


@dataclass(frozen=True, slots=True)
class HoldPush:
    """Keep a push until a later decision names it."""

    push: PushId
    waits_for: str
    """What it waits for, for people to read: "pushes of 2 more workers"."""


@dataclass(frozen=True, slots=True)
class RefusePush:
    """Answer a push with an error. The policy has forgotten it."""

    push: PushId
    error: OptdError


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at this time, in seconds of the monotonic clock. A later `WakeAt` replaces this one."""

    seconds: float


Decision: TypeAlias = MakeStep | HoldPush | RefusePush | WakeAt
Decisions: TypeAlias = Sequence[Decision]
NONE: Decisions = ()


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """The round that a policy collects, for people to see. Times are in seconds of the monotonic clock."""

    opened: float | None = None
    """Since when a push waits; None if none does."""
    arrived: tuple[str, ...] = ()
    """The workers whose pushes are in it."""
    arriving: tuple[str, ...] = ()
    """The workers whose gradients are on their way."""
    missing: tuple[str, ...] = ()
    """The workers that it waits for. Some may be gone: those are the last ones that had the places left empty."""
    places: int = 0
    """How many of the pushes that it waits for may come from any worker, also from one that has not joined yet."""
    deadline: float | None = None
    """When something happens without any push; None if nothing does."""
    release: str = ""
    """What will release it, in words that follow "it is released by" or "it waits for": "a push of w3"."""


class Policy(Protocol):
    """Decides which pushes become a step together.

    `now` is the time in seconds of a monotonic clock. A policy answers every offered push with one `MakeStep` or
    `RefusePush`, at once or later. Until then `withdrawn` may take it back. A worker has at most one push held.
    """

    @property
    def slots(self) -> int:
        """How many gradients, complete or still arriving, are kept at once."""

    @property
    def most(self) -> int:
        """The largest number of pushes in one step."""

    def offered(self, push: PushId, now: float) -> Decisions:
        """A push has been announced. Its gradient is still with its sender."""

    def arrived(self, push: PushId, now: float) -> Decisions:
        """The whole gradient of a push has arrived."""

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """A push that the policy holds has been withdrawn."""

    def joined(self, worker: str, now: float) -> Decisions:
        """A worker has joined, perhaps not for the first time."""

    def left(self, worker: str, now: float) -> Decisions:
        """A worker has left of its own accord. Its push, if any, has already been withdrawn."""

    def expired(self, worker: str, now: float) -> Decisions:
        """The lease of a worker has run out. Its push, if any, has already been withdrawn."""

    def tick(self, now: float) -> Decisions:
        """The time that `WakeAt` named has come or passed."""

    def status(self, now: float) -> RoundStatus:
        """Describe the round that is being collected. Changes nothing."""


class Indifferent:
    """A base of policies that answers every event except `offered` with no decision, and holds no push."""

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

    def status(self, now: float) -> RoundStatus:
        """No push ever waits for another."""
        return RoundStatus()
