"""Memory planning: how much a job may need, and the reservations of all jobs against the server's limit.

Memory is planned when a job is created or changed, not when it is first used. A job that would not fit is refused
whole, and no push can exhaust the server.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from optd_server.store.flat import bytes_of, computed_bytes_of
from optd_wire.errors import MemoryExceeded
from optd_wire.layout import GroupLayout

SNAPSHOTS = 3
"""The current weights, the next ones, and one version that is still being read."""
MESSAGE_BYTES = 16 << 20
"""The default of the largest message's size."""

FRAME_BYTES = 768
"""What a frame that is kept takes beside its numbers and row ids: its objects, and the range that it has claimed."""
PIECE_BYTES = 64 << 10
"""A gradient is planned for with a frame for each parameter, and one more for as many bytes."""


def job_bytes(
    slots: int,
    pushes: int,
    layouts: Sequence[GroupLayout],
    states: Sequence[int],
    *,
    gradients: int = 0,
    averages: int = 0,
    copies: int = 0,
) -> int:
    """Return the bytes of a job: snapshots of the weights, averages, gradients and state.

    `slots` is how many gradients the job keeps while they arrive and are applied, and `gradients` how many it keeps
    besides. `pushes` is how many pushes of a step wait for each other, each with its whole gradient. `states` has the
    bytes of each group's state, and `averages` is the number of averages of the weights. `copies` is how many copies of
    everything that survives are made at the same time, for snapshots on disk; of the weights such a copy is a version
    that steps cannot write to meanwhile.
    """
    gradient = computed_bytes_of(layouts)
    waiting = waiting_bytes(pushes, layouts)
    kept = bytes_of(layouts) * averages + gradient * gradients + sum(states)
    return bytes_of(layouts) * (SNAPSHOTS + copies) + gradient * slots + waiting + kept * (1 + copies)


def waiting_bytes(pushes: int, layouts: Sequence[GroupLayout]) -> int:
    """Return the bytes that are planned for pushes that wait for each other: a gradient each, in its frames."""
    if pushes == 1:
        return 0
    gradient = computed_bytes_of(layouts)
    frames = sum([len(layout.parameters) for layout in layouts]) + gradient // PIECE_BYTES
    return pushes * (gradient + FRAME_BYTES * frames)


class Reservation:
    """The memory that is planned for one purpose, which `what` names in errors."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bytes = 0


class Memory:
    """All reservations of a server, which together stay within its limit."""

    def __init__(self, limit: int, message_bytes: int = MESSAGE_BYTES, *, copies: int = 0) -> None:
        self.limit = limit
        self.message_bytes = message_bytes
        self.copies = copies
        """How many copies of a job are made at the same time, for snapshots on disk."""
        self._reservations: set[Reservation] = set()

    @property
    def snapshots(self) -> int:
        """How many versions of its weights a job may have in memory."""
        return SNAPSHOTS + self.copies

    @property
    def planned(self) -> int:
        """The bytes of all reservations together."""
        return sum(reservation.bytes for reservation in self._reservations)

    def check(self, reservation: Reservation, needed: int) -> None:
        """Raise `MemoryExceeded` if a reservation cannot have `needed` bytes in total."""
        free = self.limit - self.planned + (reservation.bytes if reservation in self._reservations else 0)
        if needed > free:
            raise MemoryExceeded(what=reservation.what, needed=needed, free=free, limit=self.limit)

    def reserve(self, reservation: Reservation, needed: int) -> None:
        """Set a reservation to `needed` bytes in total; raise `MemoryExceeded`, and leave it unchanged then."""
        self.check(reservation, needed)
        reservation.bytes = needed
        self._reservations.add(reservation)

    @contextmanager
    def lend(self, what: str, needed: int) -> Iterator[None]:
        """Reserve `needed` bytes while the block runs; raise `MemoryExceeded`."""
        reservation = Reservation(what)
        self.reserve(reservation, needed)
        try:
            yield
        finally:
            self.release(reservation)

    def release(self, reservation: Reservation) -> None:
        """End a reservation."""
        self._reservations.discard(reservation)
