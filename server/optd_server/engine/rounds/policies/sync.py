"""`sync`: a step takes a round of pushes, one from each worker.

A round is reduced in the order of the workers' names, so the same pushes give the same bits whatever the order of their
arrival. It closes when every worker that it waits for has pushed; or, once the quorum has, when its grace window is
over; or when its time is up. Each fragment has rounds of its own.

A worker takes part from its joining on, also in a round that is open then. A worker that leaves or is lost takes its
push along; `on_death` says whether the round waits for another one in its place. What is left when a round has been
applied is late. It is told so then, and not when the round closes: its step may still come to nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from optd_server.engine.progress import Progress
from optd_server.engine.rounds.policies.base import (
    NONE,
    Decision,
    Decisions,
    EndedRound,
    HoldPush,
    LeaveOut,
    LostWorker,
    MakeStep,
    Offer,
    PushId,
    RefusePush,
    RoundStatus,
    TooLate,
    WakeAt,
)
from optd_server.engine.rounds.policies.grace import BEFORE_ALL, Grace
from optd_server.engine.rounds.policies.lateness import Lateness
from optd_server.engine.rounds.policies.open_round import OpenRound
from optd_server.engine.rounds.policies.sync_settings import LIVE, MAX_WORKERS, check, on_death_of
from optd_server.engine.rounds.policies.sync_words import release_of
from optd_wire.values import Sync

STEPPED = "the next step has been made without it"
ACCUMULATED = "a round that is accumulated for the next step has closed without it"
LEFT, LOST = "has left", "was lost: its lease ran out"


@dataclass(frozen=True, slots=True)
class Limits:
    """When a round closes, in numbers of pushes and in time."""

    needed: int
    """So many pushes close it at once."""
    floor: int
    """With fewer pushes it never closes."""
    deadline: float | None
    """When it closes with the pushes that are there; None: never, or they are fewer than the floor."""


class SyncPolicy:
    """Collects rounds of pushes from different workers. Raises `InvalidPolicy` for a setting that is out of range.

    A job that has made a step has had all of its workers: from then on `on_death` counts.
    """

    receives_first = True
    slots = 1
    """All pushes of a round are added up in one."""

    def __init__(self, given: Sync, progress: Progress) -> None:
        check(given)
        self._given = given
        self._on_death = on_death_of(given)
        self._grace = Grace(given.grace)
        self._progress = progress
        self._at = progress.at(0)
        """Where the job was when its last round ended."""
        self._lateness = Lateness(progress)
        self._live: dict[str, None] = {}
        self._rounds: dict[int, OpenRound] = {}
        """By fragment."""
        self._opened: dict[int, float] = {}
        """By fragment, when the first gradient of its last round arrived."""
        self._to_tell: dict[str, LostWorker] = {}
        """The workers whose next push fails, because another one is lost."""

    @property
    def most(self) -> int:
        """The largest number of pushes in one step."""
        return MAX_WORKERS if self._given.workers == LIVE else self._given.workers

    @property
    def planned(self) -> int:
        """Memory is planned for a known number of workers only."""
        return 1 if self._given.workers == LIVE else self._given.workers

    # Pushes

    def offered(self, offer: Offer, now: float) -> Decisions:
        """Let the gradient of a push arrive for the round that is open; refuse it if it is for an earlier one."""
        lost = self._to_tell.pop(offer.id.worker, None)
        if lost is not None:
            return (RefusePush(offer.id, lost),)
        if self._lateness.is_late(offer):
            refused = self._refused_late(offer, now)
            # What is known of late gradients may bring the end of an open round's window nearer.
            return [refused, *self._judged(list(self._rounds), now)]
        self._rounds.setdefault(offer.fragment, OpenRound()).announce(offer, now)
        return (HoldPush(offer.id),)

    def arrived(self, push: PushId, now: float) -> Decisions:
        """Count a push in its round, now that its gradient is there."""
        for fragment, found in self._rounds.items():
            if found.awaits(push):
                self._grace.note(push.worker, found.arrive(push.worker, now))
                return self._judged([fragment], now)
        return NONE

    def withdrawn(self, push: PushId, now: float) -> Decisions:
        """Take a push out of its round."""
        for fragment, found in self._rounds.items():
            if found.has(push):
                self._take_out(fragment, push.worker)
                break
        return NONE

    def ended(self, round_: EndedRound, now: float) -> Decisions:
        """Refuse the pushes that the round has left out, and count whom it has left out."""
        at, before = self._progress.at(0), self._at
        self._at = at
        decisions = self._left_out(round_, now) if at > before else []
        return [*decisions, *self._judged(list(self._rounds), now)]

    def is_late(self, offer: Offer) -> bool:
        """Whether a round has been applied without this push since it was offered."""
        return self._lateness.is_late(offer)

    def _left_out(self, round_: EndedRound, now: float) -> list[Decision]:
        waiting = [offer for found in self._rounds.values() for offer in found.offers()]
        late = [offer for offer in waiting if self._lateness.is_late(offer)]
        for offer in late:
            self._take_out(offer.fragment, offer.id.worker)
        decisions: list[Decision] = [self._refused_late(offer, now) for offer in late]
        absent = tuple(sorted(worker for worker in self._live if worker not in round_.workers))
        return [*decisions, LeaveOut(absent)] if absent and round_.workers else decisions

    def _refused_late(self, offer: Offer, now: float) -> RefusePush:
        is_new = self._lateness.tell(offer.id.worker, offer.fragment)
        if is_new and offer.fragment in self._opened:
            self._grace.note(offer.id.worker, now - self._opened[offer.fragment])
        return RefusePush(offer.id, TooLate(STEPPED if offer.base < self._progress.at(0).version else ACCUMULATED))

    def _take_out(self, fragment: int, worker: str) -> None:
        found = self._rounds[fragment]
        found.remove(worker)
        if found.is_empty:
            del self._rounds[fragment]

    # Workers

    def joined(self, worker: str, now: float) -> Decisions:
        """Let a worker take part from now on, also in the rounds that are open."""
        self._lateness.forget(worker)
        self._to_tell.pop(worker, None)
        self._live[worker] = None
        return NONE

    def resumed(self, worker: str, now: float) -> Decisions:
        """Let a worker take part that has joined before."""
        self._live[worker] = None
        return NONE

    def left(self, worker: str, now: float) -> Decisions:
        """Go on without a worker, wait for one that takes its place, or fail: as `on_death` says."""
        return self._gone(LostWorker(worker, LEFT), now)

    def expired(self, worker: str, now: float) -> Decisions:
        """Do the same as for a worker that has left."""
        return self._gone(LostWorker(worker, LOST), now)

    def tick(self, now: float) -> Decisions:
        """Close the rounds whose time is up."""
        return self._judged(list(self._rounds), now)

    def _gone(self, lost: LostWorker, now: float) -> Decisions:
        self._to_tell.pop(lost.worker, None)
        self._lateness.forget(lost.worker)
        self._grace.forget(lost.worker)
        if self._live.pop(lost.worker, lost) is lost:
            return NONE
        if self._on_death != "fail":
            return self._judged(list(self._rounds), now)
        held = [offer.id for found in self._rounds.values() for offer in found.offers()]
        self._rounds.clear()
        told = {push.worker for push in held}
        self._to_tell.update({worker: lost for worker in self._live if worker not in told})
        return [RefusePush(push, lost) for push in held]

    # When a round closes

    def _judged(self, fragments: Iterable[int], now: float) -> Decisions:
        decisions: list[Decision] = []
        for fragment in fragments:
            found = self._rounds[fragment]
            limits = self._limits(found)
            there = len(found.arrived)
            if there >= limits.needed or (limits.deadline is not None and now >= limits.deadline):
                decisions.append(self._close(fragment, now))
        decisions += self._apart()
        deadlines = [self._limits(found).deadline for found in self._rounds.values()]
        decisions += [WakeAt(min(known))] if (known := [each for each in deadlines if each is not None]) else []
        return decisions

    def _apart(self) -> list[Decision]:
        """Refuse the pushes of all rounds but the largest if all workers wait, each for others in another round.

        That happens when workers push different fragments. Those that are refused go on with the others.
        """
        there = {worker for found in self._rounds.values() for worker in found.arrived}
        may_more_come = len(self._live) < max(self._expected(), 1)
        if len(self._rounds) < 2 or may_more_come or not there.issuperset(self._live):
            return []
        kept = max(self._rounds, key=lambda fragment: (len(self._rounds[fragment].arrived), -fragment))
        apart = [offer.id for fragment, found in self._rounds.items() if fragment != kept for offer in found.offers()]
        self._rounds = {kept: self._rounds[kept]}
        how = f"all other workers wait with fragment {kept}, so that no round of its fragment can close"
        return [RefusePush(push, TooLate(how)) for push in apart]

    def _limits(self, found: OpenRound) -> Limits:
        given, there = self._given, len(found.arrived)
        quorum = given.quorum or 0
        floor = max(quorum, 1)
        needed = max(self._expected(), floor)
        are_all_there = all(worker in found.arrived for worker in self._live)
        if quorum and self._progress.at(0).version and are_all_there:
            needed = floor  # nobody is left to wait for
        window = self._grace.seconds
        if window is None and are_all_there:
            window = BEFORE_ALL
        deadline: float | None = None
        if found.opened is not None and there >= floor:
            windows = [window if quorum else None, given.round_seconds]
            deadline = min((found.opened + each for each in windows if each is not None), default=None)
        return Limits(needed, floor, deadline)

    def _expected(self) -> int:
        """Return how many workers a round waits for."""
        if self._given.workers == LIVE:
            return len(self._live)
        if self._on_death == "continue" and self._progress.at(0).version:
            return min(self._given.workers, len(self._live))
        return self._given.workers

    def _close(self, fragment: int, now: float) -> MakeStep:
        """Make a step of the gradients that are there. Those that are still on their way wait for its outcome."""
        found = self._rounds.pop(fragment)
        if found.arriving:
            self._rounds[fragment] = OpenRound(arriving=found.arriving, began=now)
        if found.opened is not None and found.began is not None:
            self._opened[fragment] = found.opened
            self._grace.note_round(found.began, found.opened, now)
        return MakeStep(tuple(found.arrived[worker].id for worker in sorted(found.arrived)))

    # For people to see

    def status(self, now: float) -> tuple[RoundStatus, ...]:
        """Describe each open round."""
        return tuple(self._status(fragment, self._rounds[fragment], now) for fragment in sorted(self._rounds))

    def _status(self, fragment: int, found: OpenRound, now: float) -> RoundStatus:
        limits = self._limits(found)
        known = {**self._live, **found.arrived, **found.arriving}
        pushed = {*found.arrived, *found.arriving}
        missing = tuple(sorted(worker for worker in self._live if worker not in pushed))
        places = max(0, limits.needed - len(known))
        return RoundStatus(
            fragment=fragment,
            opened=found.opened,
            arrived=tuple(sorted(found.arrived)),
            arriving=tuple(sorted(found.arriving)),
            missing=missing,
            places=places,
            deadline=limits.deadline,
            release=release_of(
                waited_for=sorted([*missing, *found.arriving]),
                places=places,
                more_for_quorum=max(0, (self._given.quorum or 0) - len(found.arrived)),
                seconds=None if limits.deadline is None else max(0.0, limits.deadline - now),
            ),
        )
