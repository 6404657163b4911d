"""The shape of a policy."""

from collections.abc import Sequence
from typing import Protocol

from optd_server.engine.rounds.push import Push


class PolicyRule(Protocol):
    """Decides which pushes become a step together. Pure bookkeeping: no arithmetic, no clock, no waiting."""

    @property
    def slots(self) -> int:
        """How many gradients, whole or on their way, are kept at once."""

    @property
    def most(self) -> int:
        """Of how many pushes a step is made."""

    @property
    def waiting(self) -> Sequence[Push]:
        """The pushes that wait for others."""

    def offer(self, push: Push) -> Sequence[Push]:
        """Takes a push; returns the pushes that now become one step, in the order of their reduction, or none."""

    def withdraw(self, worker: str) -> Push | None:
        """Gives up the waiting push of a worker, if there is one."""
