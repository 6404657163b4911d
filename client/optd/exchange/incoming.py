"""Weights that arrive: copied into the arrays of the groups, or used where they lie in shared memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from optd.params.copying import copy_all
from optd.params.flat_view import Array
from optd.params.group_arrays import GroupArrays
from optd.params.pulled_rows import whole_frames, write_rows
from optd.session.session import Session
from optd.transport.lane import PlacedWeights, SharedBuffers
from optd.transport.numbers import Sink
from optd_wire.frames import Frame, Received


@dataclass(frozen=True, slots=True)
class _Placed:
    """Weights in shared memory by group and place: those of all groups, and those without the buffers.

    The same memory has the same lists, by which others know it.
    """

    all: list[list[Array]]
    parameters: list[list[Array]]


class IncomingWeights:
    """The weights of a registration. `zero_copy` and `writable` are those of `Registration`."""

    def __init__(self, session: Session, own: GroupArrays, *, zero_copy: bool, writable: bool) -> None:
        self._session = session
        self._own = own
        self._zero_copy = zero_copy
        self._writable = writable
        self._lane: SharedBuffers | None = None
        self._rows: dict[int, tuple[PlacedWeights, _Placed]] = {}
        self._placed: _Placed | None = None

    @property
    def weights(self) -> Sequence[Sequence[Array]]:
        """The weights by group and place: the groups' arrays, or what lies in shared memory, until the next call."""
        return self._own.arrays[self._own.first :] if self._placed is None else self._placed.parameters

    @property
    def all_weights(self) -> Sequence[Sequence[Array]]:
        """As `weights`, with the group of the buffers."""
        return self._own.arrays if self._placed is None else self._placed.all

    @property
    def in_arrays(self) -> bool:
        """Whether the weights are in the groups' arrays, and not in shared memory."""
        return self._placed is None

    @property
    def in_place(self) -> Sink | None:
        """The sink of weights that stay in shared memory; None if they are to be copied."""
        if not self._zero_copy:
            return None
        memory = self._session.shared_memory
        if memory is not None:
            memory.writable = self._writable
        return self._place

    def write(self, received: Sequence[Received]) -> None:
        """Copies weights into the arrays."""
        frames = received if isinstance(received, PlacedWeights) else whole_frames(received)
        if isinstance(frames, PlacedWeights):
            self._copy(self._rows_of(frames).all)
        else:
            if self._placed is not None:
                # The frames may hold some parameters only: the others keep the weights that lie in shared memory.
                self._copy(self._placed.all)
            self._own.view.write(frames, self._own.arrays)
            write_rows(received, self._own.groups)
        self._placed = None

    def put(self, rows: Sequence[Sequence[Array]]) -> None:
        """Copies weights of all groups into the arrays that do not come from the server."""
        self._copy(rows)
        self._placed = None

    def _copy(self, rows: Sequence[Sequence[Array]]) -> None:
        copy_all(
            [
                pair
                for group, row in zip(self._own.groups, rows, strict=False)
                for pair in zip(group.arrays, row, strict=True)
            ]
        )

    def _place(self, frames: Sequence[Frame]) -> None:
        assert isinstance(frames, PlacedWeights)
        self._placed = self._rows_of(frames)

    def _rows_of(self, frames: PlacedWeights) -> "_Placed":
        """Weights in shared memory by group and place, of the groups that are registered here."""
        if self._session.shared_memory is not self._lane:
            self._rows.clear()  # they would keep memory alive that the server has given up
            self._lane = self._session.shared_memory
        known = self._rows.get(id(frames))
        # Another object may have the id of one that is gone.
        if known is None or known[0] is not frames or len(known[1].all) != len(self._own):
            rows = self._own.view.rows(frames)
            known = self._rows[id(frames)] = (frames, _Placed(rows, rows[self._own.first :]))
        return known[1]
