"""How much memory a job may come to take, and the account of all jobs against the server's limit.

Memory is planned when a job is created or changed, not found out when it is touched: a job that would not fit is
refused whole, and no push can take the server down.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from optd_server.store.flat import bytes_of, computed_bytes_of
from optd_wire.errors import MemoryExceeded
from optd_wire.layout import GroupLayout

# The current weights, the next ones, and one version that is still being read.
SNAPSHOTS = 3
# The largest message, unless the server is told otherwise.
MESSAGE_BYTES = 16 << 20


def job_bytes(
    slots: int,
    pushes: int,
    layouts: Sequence[GroupLayout],
    states: Sequence[int],
    message_bytes: int = MESSAGE_BYTES,
    *,
    gradients: int = 0,
    averages: int = 0,
) -> int:
    """Bytes of the weights' snapshots, the gradients that are kept, and the state.

    `states` tells how many bytes of state each group has. Each push of a round that waits for others has one message
    here; the rest of it stays with its sender: `pushes` is the most of them that make a step, and `slots` how many
    gradients are kept while they arrive and are applied. `gradients` are kept besides those, and `averages` of the
    weights.
    """
    gradient = computed_bytes_of(layouts)
    waiting = 0 if pushes == 1 else pushes * min(gradient, message_bytes)
    return bytes_of(layouts) * (SNAPSHOTS + averages) + gradient * (slots + gradients) + waiting + sum(states)


class Reservation:
    """The memory planned for one thing; `what` names it in errors."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bytes = 0


class Memory:
    """All reservations, within the server's limit."""

    def __init__(self, limit: int, message_bytes: int = MESSAGE_BYTES) -> None:
        self.limit = limit
        self.message_bytes = message_bytes
        self._reservations: set[Reservation] = set()

    @property
    def planned(self) -> int:
        """Bytes planned for everything."""
        return sum(reservation.bytes for reservation in self._reservations)

    def check(self, reservation: Reservation, needed: int) -> None:
        """Raises `MemoryExceeded` unless a reservation may come to `needed` bytes in all."""
        free = self.limit - self.planned + (reservation.bytes if reservation in self._reservations else 0)
        if needed > free:
            raise MemoryExceeded(what=reservation.what, needed=needed, free=free, limit=self.limit)

    def reserve(self, reservation: Reservation, needed: int) -> None:
        """Lets a reservation come to `needed` bytes in all; raises `MemoryExceeded` and leaves it as it was."""
        self.check(reservation, needed)
        reservation.bytes = needed
        self._reservations.add(reservation)

    @contextmanager
    def lend(self, what: str, needed: int) -> Iterator[None]:
        """Plans `needed` bytes for as long as the block runs; raises `MemoryExceeded`."""
        reservation = Reservation(what)
        self.reserve(reservation, needed)
        try:
            yield
        finally:
            self.release(reservation)

    def release(self, reservation: Reservation) -> None:
        """Ends a reservation."""
        self._reservations.discard(reservation)
