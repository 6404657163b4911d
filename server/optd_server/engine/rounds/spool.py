"""The gradient of a push that waits for its round: its frames, kept as they came.

Gradients of a round are kept apart until all of them are there. A push that comes to nothing therefore costs the others
nothing, and slow senders arrive side by side. Frames keep their encoding, so an int8 gradient takes a quarter of the
memory that it will need in the step.

With its first frames a push takes memory for all that it may send. So where memory is short some gradients come through
whole and the others wait, and it is never taken up by parts of gradients that wait for one another.
"""

from collections.abc import Sequence

from optd_server.engine.offload import Offload
from optd_server.engine.options.groups import Groups
from optd_server.engine.rounds.digest import size_of
from optd_server.engine.rounds.holding import Holding, kept_bytes
from optd_server.engine.rounds.push import Push
from optd_server.store.extents import in_compute_dtype
from optd_server.store.flat import FrameClaims, Placed
from optd_server.store.ledger import Presence
from optd_server.store.rows import RowPlace, table_of
from optd_wire.errors import InvalidRequest
from optd_wire.frames import Frame, Received
from optd_wire.row_frames import RowFrame
from optd_wire.values import GRADIENT


class Spool:
    """The received frames of one push. Lives on one event loop."""

    def __init__(self, push: Push, groups: Groups, room: Holding, offload: Offload) -> None:
        self.placed: list[Placed] = []
        """The frames of whole parameters, each with its place."""
        self.rows: list[RowFrame] = []
        self.tables: set[RowPlace] = set()
        """The parameters that it has rows of, perhaps no rows."""
        self.presence: Presence | None = None
        """The parameters that it has whole, once it is sealed."""
        self.waits = False
        """Whether it waits for memory."""
        self._push = push
        self._extents = in_compute_dtype(groups.extents)
        self._claims = FrameClaims(self._extents, GRADIENT, groups.names)
        self._room = room
        self._offload = offload
        self._elements = 0 if push.header.fragment else groups.elements
        """How many elements it may have; 0: unknown."""
        self._held = 0
        """The bytes that are counted for it."""
        self._used = 0
        """The bytes that it takes."""
        self._is_released = False

    async def write(self, frames: Sequence[Received]) -> None:
        """Keep received frames; raise the problem of a frame, or why the push has ended."""
        self._check_open()
        if self._push.header.flush and frames:
            raise InvalidRequest(problem=f"a flush brings no gradient, and this one has {len(frames)} frames")
        size = kept_bytes(frames)
        self._used += size
        if self._used > self._held:
            await self._take(self._used - self._held if self._held else self._expected(frames, size))
        await self._push.digest.added(frames, self._offload)
        for frame in frames:
            self._keep(frame)

    def _expected(self, frames: Sequence[Received], size: int) -> int:
        """Return the bytes of the whole gradient if the numbers of its rest are encoded as those of these frames."""
        dense = [frame for frame in frames if isinstance(frame, Frame)]
        elements = sum([frame.count for frame in dense])
        if not 0 < elements < self._elements:
            return size
        whole = size + sum(map(size_of, dense)) * (self._elements - elements) // elements
        # What the job could not hold on its own is taken message by message: perhaps the gradient is not whole.
        return whole if self._room.could_hold(whole) else size

    async def _take(self, count: int) -> None:
        self.waits = True
        try:
            await self._room.take(count, has_begun=self._held > 0)
        finally:
            self.waits = False
        self._held += count
        if self._is_released:
            self.release()
            self._check_open()

    def _keep(self, frame: Received) -> None:
        """Check a frame, and keep it unless it is empty: its table and its claim say all that it says."""
        if isinstance(frame, Frame):
            frame.check()
            extent, slab, start = self._claims.place(frame)
            if frame.count:
                self.placed.append(Placed(frame, extent, slab, start))
        else:
            self.tables.add(table_of(self._extents, frame))
            if frame.count:
                self.rows.append(frame)

    def _check_open(self) -> None:
        if self._push.outcome.is_done:
            self._push.outcome.get()

    def seal(self) -> None:
        """Mark the gradient as complete; raise `IncompleteParameter` or `InvalidRequest`."""
        presence = self._claims.ledger.presence()
        for table in self.tables:
            if presence[table.extent][table.slab][table.parameter]:
                raise InvalidRequest(problem=f"a push has parameter {table.name!r} whole, and rows of it besides")
        self.presence = presence
        self._room.give_back(self._held - self._used)
        self._held = self._used

    def release(self) -> None:
        """Drop the frames and free their memory."""
        self._is_released = True
        self.placed, self.rows = [], []
        self._room.give_back(self._held)
        self._held = 0

    @property
    def elements(self) -> int:
        """About how many elements it has."""
        return sum([each.frame.count for each in self.placed]) + sum([elements_of(each) for each in self.rows])


def elements_of(frame: Received) -> int:
    """Return how many elements a frame has; for rows this is an estimate."""
    return frame.count if isinstance(frame, Frame) else frame.count + size_of(frame) // 2
