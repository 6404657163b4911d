"""The interface of a policy: events of pushes and workers go in, decisions come out.

A policy is pure bookkeeping. It sees identities, never gradients or callers, and reads no clock: every call passes the
time. The caller carries out all decisions, in order, before its next call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class PushId:
    """The identity of a push."""

    worker: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A push as its policy sees it when it is announced."""

    id: PushId
    base: int = 0
    """The version that its gradient was computed on."""
    version: int = 0
    """The job's version now."""
    fragment: int = 0
    """The part of the model that it is of; 0: the whole model."""


@dataclass(frozen=True, slots=True)
class MakeStep:
    """Take a step with these pushes, reduced in this order. The policy has forgotten them."""

    pushes: tuple[PushId, ...]


@dataclass(frozen=True, slots=True)
class HoldPush:
    """Keep a push until a later decision names it."""

    push: PushId


@dataclass(frozen=True, slots=True)
class TooLate:
    """A reason to refuse a push: the round of its weights has closed without it."""

    base: int


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A reason to refuse a push: its round waits in vain for a worker."""

    worker: str
    how: str
    """What has become of that worker, as the end of a sentence: "has left"."""


@dataclass(frozen=True, slots=True)
class RefusePush:
    """Answer a push with an error. The policy has forgotten it."""

    push: PushId
    why: TooLate | LostWorker


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Count that a round has closed without a push of these workers, which take part in the job."""

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at this time, in seconds of the monotonic clock. A later `WakeAt` replaces this one."""

    seconds: float


Decision: TypeAlias = MakeStep | HoldPush | RefusePush | LeaveOut | WakeAt
Decisions: TypeAlias = Sequence[Decision]
NONE: Decisions = ()


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """An open round, for people to see."""

    fragment: int
    opened: float | None
    """When its first gradient arrived, in seconds of the monotonic clock; None: none has."""
    arrived: tuple[str, ...]
    """The workers that wait in it: their gradients are there, or are not asked for before the round begins."""
    arriving: tuple[str, ...]
    """The workers whose gradients are on their way."""
    missing: tuple[str, ...]
    """The other workers that it waits for."""
    places: int
    """How many further workers, of any name, it waits for."""
    deadline: float | None
    """When it closes without those that are missing, in seconds of the monotonic clock; None: it does not."""
    release: str
    """What closes it, in words."""


class Policy(Protocol):
    """Decides which pushes become a step together.

    `now` is the time in seconds of a monotonic clock. A policy answers every offered push with one `MakeStep` or
    `RefusePush`, at once or later. Until then `withdrawn` may take it back. A worker has at most one push held.
    """

    @property
    def receives_first(self) -> bool:
        """Whether a gradient is received while its push is held, and not after its round has begun."""

    @property
    def slots(self) -> int:
        """How many gradients are kept at once, complete or still arriving, besides those that are received first."""

    @property
    def most(self) -> int:
        """The largest number of pushes in one step."""

    @property
    def planned(self) -> int:
        """For how many pushes that are held memory is planned."""

    def offered(self, offer: Offer, now: float) -> Decisions:
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

    def applied(self, workers: Sequence[str], version: int, now: float) -> Decisions:
        """A round of these workers has been applied; the job is at `version`."""

    def tick(self, now: float) -> Decisions:
        """The time that `WakeAt` named has come or passed."""

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Describe the rounds that wait. This changes nothing."""


class Indifferent:
    """A base of policies, which answers every event except `offered` with no decision."""

    receives_first = False

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

    def applied(self, workers: Sequence[str], version: int, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def tick(self, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Nothing waits."""
        return ()
