"""`async`: a step for every push, in order of arrival."""

from collections.abc import Sequence

from optd_server.engine.rounds.push import Push

# One gradient is in a step while the next ones arrive.
SLOTS = 4


class AsyncRule:
    """Every push is a step of its own."""

    slots = SLOTS
    most = 1
    waiting: Sequence[Push] = ()

    def offer(self, push: Push) -> Sequence[Push]:
        """The push itself."""
        return (push,)

    def withdraw(self, worker: str) -> Push | None:
        """Nothing waits."""
        return None
