"""The rounds that are due but still wait for a slot for their gradient."""

from collections.abc import Callable, Sequence

from optd_server.engine.rounds.push import Push
from optd_server.store.gradients import Slot, Slots


class Requests:
    """The requests of one job for slots. Lives on one event loop."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._of: dict[Push, Callable[[Slot], None]] = {}
        """By push that waits, the request of its round."""

    def make(self, due: Sequence[Push], start: Callable[[Sequence[Push], Slot], None]) -> None:
        """Call `start` with a slot for the round of the pushes in `due`: at once, or as soon as one is free."""

        def request(slot: Slot) -> None:
            for push in due:
                self._of.pop(push, None)
            start(due, slot)

        if not self._slots.take(request):
            for push in due:
                self._of[push] = request

    def forget(self, push: Push) -> None:
        """Note that a push no longer waits. The last push of a round takes the request with it."""
        if push not in self._of:
            return
        request = self._of.pop(push)
        if request not in self._of.values():
            self._slots.withdraw(request)
