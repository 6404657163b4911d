"""The pushes that wait for their round. The policy decides about them, and this carries out its decisions."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

from optd_server.engine.clock import Clock
from optd_server.engine.membership.leases import Leases
from optd_server.engine.rounds.policies.base import (
    Decisions,
    EndedRound,
    HoldPush,
    LeaveOut,
    MakeStep,
    Offer,
    Policy,
    PushId,
    RefusePush,
    RoundStatus,
    WakeAt,
)
from optd_server.engine.rounds.push import Push
from optd_server.engine.rounds.refusals import refusal
from optd_server.engine.state import JobState
from optd_wire.errors import OptdError
from optd_wire.values import PushResult


def offer_of(push: Push) -> Offer:
    """Return a push as its policy sees it."""
    return Offer(push.id, push.header.base_version, push.header.fragment)


class Waiting:
    """The pushes of one job that its policy holds. Lives on one event loop.

    `begin` is called with the pushes of a step, in the order of their reduction. `refuse` is called with a push that
    the policy refuses, and the reason.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        state: JobState,
        leases: Leases,
        begin: Callable[[Sequence[Push]], None],
        refuse: Callable[[Push, OptdError], None],
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._state = state
        self._leases = leases
        self._begin = begin
        self._refuse = refuse
        self._held: dict[PushId, Push] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pushes(self) -> Collection[Push]:
        """The waiting pushes, in the order of their arrival."""
        return self._held.values()

    def waits(self, worker: str) -> bool:
        """Whether a push of the worker is waiting."""
        return any(held.worker == worker for held in self._held)

    def offer(self, push: Push) -> None:
        """Offer a push to the policy."""
        self._held[push.id] = push
        header = push.header
        self._leases.of(header.worker).activity.last_push = push.wall
        self._carry_out(self.policy.offered(offer_of(push), self._clock.monotonic()))

    def arrived(self, push: Push) -> None:
        """Tell the policy that the gradient of a push has arrived."""
        self._carry_out(self.policy.arrived(push.id, self._clock.monotonic()))

    def has_late(self, pushes: Sequence[Push]) -> bool:
        """Whether one of these pushes, of which a step is to be made, is late: another round came first.

        What was to be a step of its own under an earlier policy stays one.
        """
        return not pushes[0].is_lone and any([self.policy.is_late(offer_of(push)) for push in pushes])  # noqa: C419

    def take_back(self, push: Push) -> None:
        """Withdraw a push if it is waiting."""
        if self._held.pop(push.id, None) is not None:
            self._carry_out(self.policy.withdrawn(push.id, self._clock.monotonic()))

    def joined(self, worker: str) -> None:
        """Tell the policy that a worker has joined."""
        self._carry_out(self.policy.joined(worker, self._clock.monotonic()))

    def resumed(self, worker: str) -> None:
        """Tell the policy that a worker goes on that has joined before."""
        self._carry_out(self.policy.resumed(worker, self._clock.monotonic()))

    def left(self, worker: str) -> None:
        """Tell the policy that a worker has left."""
        self._carry_out(self.policy.left(worker, self._clock.monotonic()))

    def expired(self, worker: str) -> None:
        """Tell the policy that the lease of a worker has run out."""
        self._carry_out(self.policy.expired(worker, self._clock.monotonic()))

    def applied(self, pushes: Sequence[Push], replies: Sequence[PushResult]) -> None:
        """Tell the policy that a round has been applied, and note for people what has become of its pushes."""
        for push, reply in zip(pushes, replies, strict=True):
            self._leases.note_applied(push.header.worker, reply, self._clock.wall())
        # A step that an earlier policy made is no round of this one.
        is_round = not (self.policy.receives_first and pushes[0].is_lone)
        workers = tuple([push.header.worker for push in pushes]) if is_round else ()
        self._advance(EndedRound(workers, pushes[0].header.fragment))

    def stepped(self) -> None:
        """Do the same for a step of the accumulated rounds alone."""
        self._leases.note_step(self._clock.wall())
        self._advance(EndedRound((), 0))

    def _advance(self, round_: EndedRound) -> None:
        self._carry_out(self.policy.ended(round_, self._clock.monotonic()))

    def status(self) -> tuple[RoundStatus, ...]:
        """Describe the rounds that wait."""
        return self.policy.status(self._clock.monotonic())

    def exchange(self, policy: Policy, workers: Iterable[str]) -> list[Push]:
        """Replace the policy, and tell the new one which workers take part.

        Return the pushes that the old policy held, in the order of their arrival. The caller offers them again.
        """
        self.close()
        held, self._held = list(self._held.values()), {}
        self.policy = policy
        for worker in workers:
            self.resumed(worker)
        return held

    def close(self) -> None:
        """Cancel the policy's timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _carry_out(self, decisions: Decisions) -> None:
        for decision in decisions:
            if isinstance(decision, WakeAt):
                self._wake_at(decision.seconds)  # first: what the others lead to may set a newer time
        for decision in decisions:
            match decision:
                case MakeStep(ids):
                    pushes = [self._held.pop(each) for each in ids]
                    for push in pushes:
                        push.is_lone = not self.policy.receives_first
                    self._begin(pushes)
                case HoldPush() | WakeAt():
                    continue
                case RefusePush(id_, why):
                    refused = self._held.pop(id_)
                    self._refuse(refused, refusal(self._state, refused.header, why))
                case LeaveOut(workers):
                    for worker in workers:
                        self._leases.of(worker).dropped_rounds += 1

    def _wake_at(self, seconds: float) -> None:
        self.close()
        delay = max(0.0, seconds - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._carry_out(self.policy.tick(self._clock.monotonic()))
