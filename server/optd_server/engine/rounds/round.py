"""A round: the pushes that become one step together, and the reduction of their gradients to one.

All gradients are there when a round is reduced: received ones in spools, the others in shared memory. They are added up
in the order of the pushes, so the same pushes give the same bits whatever the order of their arrival.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optd_server.engine.offload import Offload
from optd_server.engine.rounds.push import Push, Spool
from optd_server.engine.step.intake import Intake, weight_of
from optd_server.engine.step.reduced import Contribution, Reduced
from optd_server.engine.step.reduction import Reducer
from optd_server.optim.job_options import MEAN, REJECT, SUM
from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Gradient, Slot
from optd_server.store.ledger import Presence, is_present
from optd_server.store.rows import RowPlace, Rows, RowSums
from optd_wire.errors import MemoryExceeded, NonfiniteGradient, OptdError


class Refused(Exception):
    """A push of a round cannot be part of any step; `error` says why."""

    def __init__(self, push: Push, error: OptdError) -> None:
        super().__init__(str(error))
        self.push = push
        self.error = error


@dataclass(eq=False, slots=True)
class Part:
    """The part of one push in a round."""

    push: Push
    intake: Intake

    @property
    def received(self) -> Spool | None:
        """Its frames; None if its gradient lies in shared memory."""
        return self.push.spool

    @property
    def presence(self) -> Presence:
        """The parameters that it has whole."""
        if self.push.shared is not None:
            return self.push.shared.presence
        assert self.push.spool is not None and self.push.spool.presence is not None
        return self.push.spool.presence

    @property
    def tables(self) -> set[RowPlace]:
        """The parameters that it has rows of, perhaps no rows."""
        return set() if self.push.spool is None else self.push.spool.tables


class Round:
    """The pushes of a step, in the order in which they are added up, and the slot that holds their sum.

    This takes several pushes, or one whose gradient is there. `LoneRound` takes one that is received.

    `check_room` raises `MemoryExceeded` if there is no room for a number of bytes of rows, which lie in no slot.
    """

    def __init__(
        self,
        pushes: Sequence[Push],
        slot: Slot | None,
        extents: Sequence[Extent],
        offload: Offload,
        nonfinite: str = REJECT,
        check_room: Callable[[int], None] = lambda _: None,
        reduction: str = MEAN,
    ) -> None:
        self.pushes = tuple(pushes)
        self.reduction = reduction
        """Whether its gradient is the mean of its pushes' gradients, or their sum."""
        self.slot = slot
        self.step_has_begun = False
        """Whether its step has begun. After that no push can be withdrawn from it."""
        self.nonfinite = nonfinite
        """How to treat entries that are not finite: the job's option of that name when the round began."""
        self._extents = tuple(extents)
        self._check_room = check_room
        self._reducer = Reducer(extents, offload.kernels, offload.threads)
        weights = [weight_of(push.header) for push in self.pushes]
        # Equal weights make no difference to a mean.
        self._weights = [1.0] * len(weights) if len(set(weights)) == 1 else weights
        """Those of a mean of the pushes."""
        self._parts = {
            push: Part(push, Intake(push.header, nonfinite, weight if reduction == SUM else own, own))
            for push, weight, own in zip(self.pushes, weights, self._weights, strict=True)
        }
        self._row_sums: RowSums | None = None

    @property
    def _rows(self) -> RowSums:
        if self._row_sums is None:
            self._row_sums = RowSums(self._extents)
        return self._row_sums

    @property
    def complete(self) -> bool:
        """Whether all gradients are there."""
        return all([push.is_there for push in self.pushes])  # noqa: C419 - a list is faster here

    def has(self, push: Push) -> tuple[set[RowPlace], Presence]:
        """Return the parameters that a push has rows of, and those that it has whole."""
        part = self._parts[push]
        return part.tables, part.presence

    @property
    def elements(self) -> int:
        """About how many elements its gradients have in total."""
        return sum(
            [
                self._reducer.elements(part.presence) if part.received is None else part.received.elements
                for part in self._parts.values()
            ]
        )

    def break_off(self, release: Callable[[], None]) -> None:
        """End a round whose step has not begun: nobody writes to its slot."""
        release()

    # Off the event loop

    def reduce(self) -> Reduced:
        """Reduce the gradients of the pushes to one, in the slot if there is one.

        Raise `Refused` for a push with a NaN or an infinite element, or for whose rows there is no room.
        """
        gradient = self._gradient()
        return Reduced(gradient, self.reduction, tuple(map(self._contribution, self._parts.values())))

    def _contribution(self, part: Part) -> Contribution:
        return Contribution(weight_of(part.push.header), part.presence, frozenset(part.tables), part.intake.found)

    def _gradient(self) -> Gradient:
        """Return the only gradient, or for each parameter the mean or sum over the pushes that have it.

        The result lies in the slot if there is one.
        """
        shared = [push.shared for push in self.pushes if push.shared is not None]
        all_shared = len(shared) == len(self.pushes)
        if self.slot is None:
            assert all_shared, "what is received needs a slot"
            self._check_shared()
            return shared[0]
        plain = all([part.intake.plain for part in self._parts.values()])  # noqa: C419
        if all_shared and plain and (self.reduction == MEAN or len(shared) == 1):
            presence, finite = self._reducer.mean(shared, self.slot.buffers)
            if not finite:
                self._check_shared()
            return self.slot.holding(presence)
        buffers = self.slot.buffers
        for part in self._parts.values():
            try:
                self._add(part, buffers)
            except (NonfiniteGradient, MemoryExceeded) as error:
                raise Refused(part.push, error) from None
        presences = [part.presence for part in self._parts.values()]
        rows = self._spread_rows(presences)
        presence = presences[0]
        if len(presences) > 1:
            presence = self._reducer.divide(buffers, presences, self._weights, self.reduction)
        return self.slot.holding(presence, self._mean_rows(rows))

    def _add(self, part: Part, buffers: FlatBuffers) -> None:
        """Add the gradient of a push to the sums."""
        if part.push.shared is not None:
            self._reducer.add(part.push.shared, buffers, part.intake)
            return
        assert part.received is not None
        self._reducer.add_frames(part.received.placed, buffers, part.intake)
        if part.received.rows:
            self._check_room(self._rows.bytes_with(part.received.rows))
        for frame in part.received.rows:
            self._rows.add(frame, None if part.intake.plain else part.intake.accept)

    def _spread_rows(self, presences: Sequence[Presence]) -> list[Rows]:
        """Add rows to the parameters that other pushes have whole; return the sums of all other rows."""
        assert self.slot is not None
        if self._row_sums is None:
            return []
        left = []
        for rows in self._row_sums.sums():
            at = rows.place
            if any(is_present(presence, at.extent, at.slab, at.parameter) for presence in presences):
                rows.add_to(self.slot.buffers.slabs[at.extent][at.slab])
                for part in self._parts.values():
                    if at.whole in part.tables:
                        part.presence[at.extent][at.slab][at.parameter] = True
            else:
                left.append(rows)
        return left

    def _mean_rows(self, sums: Sequence[Rows]) -> tuple[Rows, ...]:
        for rows in sums if self.reduction == MEAN else ():
            parts = zip(self._weights, self._parts.values(), strict=True)
            total = sum(weight for weight, part in parts if rows.place.whole in part.tables)
            self._reducer.scale_rows(rows, total)
        return tuple(sums)

    def _check_shared(self) -> None:
        for push in self.pushes:
            assert push.shared is not None
            try:
                self._reducer.check(push.shared)
            except NonfiniteGradient as error:
                raise Refused(push, error) from None
