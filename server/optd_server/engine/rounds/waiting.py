"""The pushes that wait for their round. The policy decides about them, and this carries out its decisions."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

from optd_server.engine.clock import Clock
from optd_server.engine.rounds.policies.base import Decisions, HoldPush, MakeStep, Policy, PushId, RefusePush, WakeAt
from optd_server.engine.rounds.push import Push
from optd_wire.errors import OptdError


class Waiting:
    """The pushes of one job that its policy holds. Lives on one event loop.

    `begin` is called with the pushes of a step, in the order of their reduction. `refuse` is called with a push that
    the policy refuses, and the reason.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        begin: Callable[[Sequence[Push]], None],
        refuse: Callable[[Push, OptdError], None],
    ) -> None:
        self.policy = policy
        self._clock = clock
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
        """Offers a push to the policy."""
        self._held[push.id] = push
        self._carry_out(self.policy.offered(push.id, self._clock.monotonic()))

    def arrived(self, push: Push) -> None:
        """Tells the policy that the gradient of a push has arrived."""
        self._carry_out(self.policy.arrived(push.id, self._clock.monotonic()))

    def take_back(self, push: Push) -> None:
        """Withdraws a push if it is waiting."""
        if self._held.pop(push.id, None) is not None:
            self._carry_out(self.policy.withdrawn(push.id, self._clock.monotonic()))

    def joined(self, worker: str) -> None:
        """Tells the policy that a worker has joined."""
        self._carry_out(self.policy.joined(worker, self._clock.monotonic()))

    def left(self, worker: str) -> None:
        """Tells the policy that a worker has left."""
        self._carry_out(self.policy.left(worker, self._clock.monotonic()))

    def expired(self, worker: str) -> None:
        """Tells the policy that the lease of a worker has run out."""
        self._carry_out(self.policy.expired(worker, self._clock.monotonic()))

    def exchange(self, policy: Policy, workers: Iterable[str]) -> list[Push]:
        """Replaces the policy, and tells the new one which workers take part.

        Returns the pushes that the old policy held, in the order of their arrival. The caller offers them again.
        """
        self.close()
        held, self._held = list(self._held.values()), {}
        self.policy = policy
        for worker in workers:
            self.joined(worker)
        return held

    def close(self) -> None:
        """Cancels the policy's timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _carry_out(self, decisions: Decisions) -> None:
        for decision in decisions:
            match decision:
                case MakeStep(pushes):
                    self._begin([self._held.pop(each) for each in pushes])
                case HoldPush(push, waits_for):
                    self._held[push].waits_for = waits_for
                case RefusePush(push, error):
                    self._refuse(self._held.pop(push), error)
                case WakeAt(seconds):
                    self._wake_at(seconds)

    def _wake_at(self, seconds: float) -> None:
        self.close()
        delay = max(0.0, seconds - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._carry_out(self.policy.tick(self._clock.monotonic()))
