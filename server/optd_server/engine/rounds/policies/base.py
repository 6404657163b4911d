"""The interface of a policy: events of pushes and workers go in, decisions come out.

A policy is pure bookkeeping. It sees identities, never gradients or callers, and reads no clock: every call passes the
time. What it has to know of the job's state, it reads from a `Progress`. The caller carries out all decisions. These
name different pushes, so carrying one out may lead to the next call before the others are carried out.
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
    fragment: int = 0
    """The part of the model that it is of; 0: the whole model."""


@dataclass(frozen=True, slots=True)
class EndedRound:
    """A round that has ended: in a step, accumulated for one, or skipped for a NaN."""

    workers: tuple[str, ...]
    """Those whose pushes are in it; none: a step of what was accumulated before, or of an earlier policy."""
    fragment: int
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
    """A reason to refuse a push: its round has closed without it, or never will close."""

    how: str
    """What has happened, as the end of a sentence: "the next step has been made without it"."""


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
    """Count that a round was applied without a push of these workers, which take part in the job."""

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

    def is_late(self, offer: Offer) -> bool:
        """Whether a push must not count any more, because the round of its weights has been applied without it.

        This changes nothing. The caller asks before it takes a step, and offers the pushes of that step again if one
        of them is late.
        """

    def joined(self, worker: str, now: float) -> Decisions:
        """A worker has joined, perhaps not for the first time."""

    def resumed(self, worker: str, now: float) -> Decisions:
        """A worker goes on that has joined before this policy came, or before the server was started again."""

    def left(self, worker: str, now: float) -> Decisions:
        """A worker has left of its own accord. Its push, if any, has already been withdrawn."""

    def expired(self, worker: str, now: float) -> Decisions:
        """The lease of a worker has run out. Its push, if any, has already been withdrawn."""

    def ended(self, round_: EndedRound, now: float) -> Decisions:
        """A round has ended."""

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

    def is_late(self, offer: Offer) -> bool:
        """Every push counts."""
        return False

    def joined(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def resumed(self, worker: str, now: float) -> Decisions:
        """Nothing follows but what follows from joining."""
        return self.joined(worker, now)

    def left(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def expired(self, worker: str, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def ended(self, round_: EndedRound, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def tick(self, now: float) -> Decisions:
        """Nothing follows."""
        return NONE

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Nothing waits."""
        return ()
