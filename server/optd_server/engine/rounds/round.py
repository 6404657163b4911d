"""A round: the pushes that become one step together, and the reduction of their gradients to one.

A round begins when all of its pushes have been announced, so their order is known. Received gradients are added up in
one slot as they arrive, so the memory of a round does not depend on its number of workers. The same pushes must give
the same bits whatever their order of arrival: a push adds its numbers at a place only after all pushes before it have
added theirs there, and its sender is under backpressure until then. Gradients in shared memory are already complete; if
all are, they are added up in one pass. Rows are kept apart, and are added last.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from optd_server.engine.offload import Offload
from optd_server.engine.rounds.push import Push
from optd_server.engine.step.intake import Intake, weight_of
from optd_server.engine.step.reduced import Contribution, Reduced
from optd_server.engine.step.reduction import Reducer
from optd_server.optim.job_options import MEAN, REJECT, SUM
from optd_server.store.extents import Extent
from optd_server.store.flat import FlatBuffers, FrameSink
from optd_server.store.gradients import Gradient, Slot
from optd_server.store.ledger import Presence, is_present
from optd_server.store.rows import RowPlace, Rows, RowSums
from optd_wire.errors import InvalidRequest, NonfiniteGradient, OptdError
from optd_wire.frames import Frame, Received
from optd_wire.row_frames import RowFrame
from optd_wire.values import GRADIENT

END = 1 << 62
"""The place after all elements and rows."""
ROWS = END - 1
"""The place of all rows, after all elements."""


class Refused(Exception):
    """A push of a round cannot be part of any step; `error` says why."""

    def __init__(self, push: Push, error: OptdError) -> None:
        super().__init__(str(error))
        self.push = push
        self.error = error


@dataclass(eq=False, slots=True)
class PushProgress:
    """The progress of one push of a round. Places count the elements of the whole job, group after group."""

    push: Push
    sink: FrameSink | None
    intake: Intake
    presence: Presence | None = None
    tables: set[RowPlace] = field(default_factory=set)
    """The parameters that it has sent rows of, perhaps no rows."""
    reached: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def advance(self, place: int) -> None:
        """Declares that the push will write nothing more before `place`."""
        self.reached = place
        self.moved.set()


class Round:
    """The pushes of a step, in the order in which they are added up, and the slot that holds their sum.

    This takes several pushes, or one in shared memory. `LoneRound` takes one that is received.

    `check_room` raises `MemoryExceeded` if there is no room for a number of bytes of rows, which lie in no slot.
    """

    def __init__(
        self,
        pushes: Sequence[Push],
        slot: Slot | None,
        extents: Sequence[Extent],
        groups: Sequence[str],
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
        self._extents = tuple(extents)
        self._offload = offload
        self.nonfinite = nonfinite
        """How to treat entries that are not finite: the job's option of that name when the round began."""
        self._check_room = check_room
        self._reducer = Reducer(extents, offload.kernels, offload.threads)
        self._bases = _bases(extents)
        self._broken = False
        self._writing = 0
        self._release: Callable[[], None] | None = None
        weights = [weight_of(push.header) for push in self.pushes]
        # Equal weights make no difference to a mean.
        self._weights = [1.0] * len(weights) if len(set(weights)) == 1 else weights
        """Those of a mean of the pushes."""
        self._parts = {
            push: self._part_of(push, groups, Intake(push.header, nonfinite, weight if reduction == SUM else own, own))
            for push, weight, own in zip(self.pushes, weights, self._weights, strict=True)
        }
        self._row_sums: RowSums | None = None
        self.all_shared = all(push.shared is not None for push in self.pushes)
        """Whether all gradients lie in shared memory."""

    @property
    def _rows(self) -> RowSums:
        if self._row_sums is None:
            self._row_sums = RowSums(self._extents)
        return self._row_sums

    def _part_of(self, push: Push, groups: Sequence[str], intake: Intake) -> PushProgress:
        if push.shared is not None:
            return PushProgress(push, None, intake, presence=push.shared.presence)
        assert self.slot is not None, "what is received needs a slot"
        return PushProgress(push, FrameSink(self.slot.buffers, GRADIENT, groups), intake)

    @property
    def complete(self) -> bool:
        """Whether all gradients have arrived."""
        return self.all_shared or all(part.reached == END for part in self._parts.values())

    def has_received(self, push: Push) -> bool:
        """Whether the whole gradient of a push has arrived."""
        return self._parts[push].presence is not None

    def break_off(self, release: Callable[[], None]) -> None:
        """End a round whose pushes have failed and wake its writers; call `release` once none of them writes."""
        self._broken = True
        for part in self._parts.values():
            part.moved.set()
        self._release = release
        self._release_if_idle()

    # While gradients arrive

    def must_wait(self, push: Push, frames: Sequence[Received]) -> bool:
        """Whether other pushes must write before these frames can be written."""
        if push is self.pushes[0]:
            return False
        place = self._passed(self._place_behind(self._parts[push], frames))
        return any(self._parts[other].reached < place for other in self.pushes[: self.pushes.index(push)])

    async def write(self, push: Push, frames: Sequence[Received]) -> None:
        """Add received frames when it is their turn; raise the problem of a frame, or why the round has ended."""
        part = self._parts[push]
        assert part.sink is not None
        if push.header.flush and frames:
            raise InvalidRequest(problem=f"a flush brings no gradient, and this one has {len(frames)} frames")
        place = self._place_behind(part, frames)
        await self._turn(part, self._passed(place))
        rows = [frame for frame in frames if isinstance(frame, RowFrame)]
        if rows:
            self._check_room(self._rows.bytes_with(rows))
        elements = sum([elements_of(frame) for frame in frames])
        await self._working(self._offload.copy(elements, lambda: self._write(part, frames, rows)))
        part.advance(place)

    def _write(self, part: PushProgress, frames: Sequence[Received], rows: Sequence[RowFrame]) -> None:
        assert part.sink is not None
        whole = [frame for frame in frames if isinstance(frame, Frame)]
        self._reducer.write_frames(part.sink, whole, part.intake, add=True)
        for frame in rows:
            part.tables.add(self._rows.add(frame, None if part.intake.plain else part.intake.accept))

    def _passed(self, place: int) -> int:
        """Return the place that all earlier pushes must have reached. All rows share one place: for them it is END."""
        return END if place == ROWS else place

    def seal(self, push: Push) -> None:
        """Mark the gradient of a push as complete; raise `IncompleteParameter` or `InvalidRequest`."""
        part = self._parts[push]
        assert part.sink is not None
        presence = part.sink.ledger.presence()
        for table in part.tables:
            if presence[table.extent][table.slab][table.parameter]:
                raise InvalidRequest(problem=f"a push has parameter {table.name!r} whole, and rows of it besides")
        part.presence = presence
        part.advance(END)

    async def add_shared(self, push: Push) -> None:
        """Add a gradient in shared memory to gradients that are received, when it is its turn."""
        assert push.shared is not None and self.slot is not None
        shared, buffers = push.shared, self.slot.buffers
        part = self._parts[push]
        await self._turn(part, END)
        elements = sum(slab.size for slab in buffers.all_slabs())
        await self._working(self._offload.run(elements, lambda: self._reducer.add(shared, buffers, part.intake)))
        part.advance(END)

    def _place_behind(self, part: PushProgress, frames: Sequence[Received]) -> int:
        """Return the place after the last frame; raise `InvalidRequest` unless the frames come in ascending order."""
        place = part.reached
        for frame in frames:
            if isinstance(frame, RowFrame):
                place = ROWS
                continue
            if frame.group >= len(self._bases):
                continue  # the write will refuse it
            start = self._bases[frame.group] + frame.offset
            if start < place:
                raise InvalidRequest(
                    problem="where a step is made of several pushes, the frames of a push must come in ascending order "
                    f"of group and offset, and rows last; one of group {frame.group} at offset {frame.offset} came "
                    "too late"
                )
            # A frame that claims too many elements waits for its turn too, and is refused then.
            place = min(start + frame.count, END)
        return place

    async def _turn(self, part: PushProgress, place: int) -> None:
        """Wait until all earlier pushes have reached `place`.

        Waiting for the push right before this one is not enough: it may end early, with nothing for this place.
        """
        for push in self.pushes[: self.pushes.index(part.push)]:
            before = self._parts[push]
            while before.reached < place and not self._broken:
                before.moved.clear()
                await before.moved.wait()
        if self._broken:
            part.push.outcome.get()

    async def _working(self, work: Awaitable[None]) -> None:
        self._writing += 1
        try:
            await work
        finally:
            self._writing -= 1
            self._release_if_idle()

    def _release_if_idle(self) -> None:
        if self._release is not None and not self._writing:
            release, self._release = self._release, None
            release()

    # When all gradients have arrived; off the event loop

    def reduce(self) -> Reduced:
        """Reduce the gradients of the pushes to one, in the slot if there is one.

        Raise `Refused` if a push in shared memory has a NaN or an infinite element.
        """
        gradient = self._gradient()
        return Reduced(gradient, self.reduction, tuple(map(self._contribution, self.pushes)))

    def _contribution(self, push: Push) -> Contribution:
        part = self._parts[push]
        assert part.presence is not None
        weight = weight_of(push.header)
        return Contribution(weight, part.presence, frozenset(part.tables), part.intake.found)

    def _gradient(self) -> Gradient:
        """Return the only gradient, or for each parameter the mean or sum over the pushes that have it.

        The result lies in the slot if there is one. Raise what `reduce` raises.
        """
        if not self.all_shared:
            assert self.slot is not None
            presences = [part.presence for part in self._parts.values() if part.presence is not None]
            rows = self._spread_rows(presences)
            several = len(presences) > 1
            buffers = self.slot.buffers
            presence = self._put_together(buffers, presences) if several else presences[0]
            return self.slot.holding(presence, self._mean_rows(rows))
        gradients = [push.shared for push in self.pushes if push.shared is not None]
        if self.slot is None:
            self._check_shared()
            return gradients[0]
        plain = all(part.intake.plain for part in self._parts.values())
        if not plain or (self.reduction == SUM and len(gradients) > 1):
            return self.slot.holding(self._add_all_shared(self.slot.buffers))
        presence, finite = self._reducer.mean(gradients, self.slot.buffers)
        if not finite:
            self._check_shared()
        return self.slot.holding(presence)

    def _add_all_shared(self, buffers: FlatBuffers) -> Presence:
        """Reduce gradients in shared memory if some are scaled, weighted or checked, or if their sum is wanted."""
        for push in self.pushes:
            assert push.shared is not None
            try:
                self._reducer.add(push.shared, buffers, self._parts[push].intake)
            except NonfiniteGradient as error:
                raise Refused(push, error) from None
        presences = [push.shared.presence for push in self.pushes if push.shared is not None]
        return self._put_together(buffers, presences)

    def _put_together(self, sums: FlatBuffers, presences: Sequence[Presence]) -> Presence:
        """Divide sums to means if a mean is wanted; return the parameters that at least one push has."""
        return self._reducer.divide(sums, presences, self._weights, self.reduction)

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
                    if at.whole in part.tables and part.presence is not None:
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

    def has(self, push: Push) -> tuple[set[RowPlace], Presence]:
        """Return the parameters that a push has rows of, and those that it has whole."""
        part = self._parts[push]
        assert part.presence is not None
        return part.tables, part.presence

    @property
    def elements(self) -> int:
        """How many elements its gradients have in total."""
        count = 0 if self._row_sums is None else self._row_sums.size
        for part in self._parts.values():
            if part.presence is not None:
                count += self._reducer.elements(part.presence)
        return count

    def _check_shared(self) -> None:
        for push in self.pushes:
            assert push.shared is not None
            try:
                self._reducer.check(push.shared)
            except NonfiniteGradient as error:
                raise Refused(push, error) from None


def elements_of(frame: Received) -> int:
    """Return how many elements a frame has; for rows this is an estimate."""
    if isinstance(frame, Frame):
        return frame.count
    size = len(frame.payload) if isinstance(frame.payload, bytes) else frame.payload.nbytes
    return frame.count + size // 2


def _bases(extents: Sequence[Extent]) -> list[int]:
    """Return, by group, how many elements the groups before it have."""
    counts = np.array([layout.count for extent in extents for layout in extent.layouts], np.int64)
    bases: list[int] = (np.cumsum(counts) - counts).tolist()
    return bases
