"""Takes the step of a complete round: turns the round into an event, and the applied event into replies.

These are actions of the job's writer, which runs one at a time.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from optd_server.engine.decide import (
    check_evaluation,
    check_fragment,
    check_staleness,
    group_edits,
    job_edits,
    mark_of,
    staleness_of,
)
from optd_server.engine.events import (
    NO_EDITS,
    Mark,
    NonfiniteEntries,
    OptionEdits,
    OptionsChanged,
    RoundAdded,
    Skipped,
    Stepped,
)
from optd_server.engine.fold import Fold
from optd_server.engine.offload import Offload
from optd_server.engine.options.history import Origin
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.gradient_reads import BorrowedGradient, GradientReads
from optd_server.engine.rounds.lone import AnyRound
from optd_server.engine.rounds.push import Push
from optd_server.engine.rounds.round import Refused
from optd_server.engine.rounds.settings import Settings
from optd_server.engine.step.accumulation import finished, weighted
from optd_server.engine.step.conditioning import UNCLIPPED, bounded, scale_gradient
from optd_server.engine.step.intake import loss_of
from optd_server.engine.step.reduced import Reduced
from optd_server.engine.step.staleness import factor_of, scales
from optd_server.engine.step.supported_gradients import check_supported
from optd_server.optim.clipping import Bounds, Clipped
from optd_server.optim.job_options import SKIP, ZERO
from optd_server.store.gradients import Gradient, Slots, Totals
from optd_server.store.versions import WeightSet
from optd_wire.errors import OptdError, RoundBroken
from optd_wire.values import GroupUpdate, JobUpdate, PushResult


def no_memory(job: str, what: str, problem: OSError) -> RoundBroken:
    """Return the error of a push for which the system has no memory."""
    why = f"the server gets no memory for {what}: {problem.strerror or problem}"
    return RoundBroken(job=job, why=why)


def updates_of(pushes: Sequence[Push]) -> list[tuple[GroupUpdate, Origin]]:
    """Return the changes of options that pushes carry, in order."""
    return [(update, Origin(push.wall, push.header.worker)) for push in pushes for update in push.header.updates]


class Committer:
    """Takes the steps of one job. Its coroutines are actions of the job's writer."""

    def __init__(
        self, fold: Fold, memory: JobMemory, slots: Slots, gradient_reads: GradientReads, offload: Offload
    ) -> None:
        self.settings = Settings(fold.state)
        self._fold = fold
        self._state = fold.state
        self._memory = memory
        self._slots = slots
        self._gradient_reads = gradient_reads
        self._offload = offload

    def edits(self, pushes: Sequence[Push]) -> OptionEdits:
        """Return the edits that these pushes carry; raise the problem of one."""
        for push in pushes:
            if push.header.updates:
                return group_edits(self._state, updates_of(pushes))
        return NO_EDITS

    async def commit(self, round_: AnyRound, is_whole: Callable[[], bool]) -> Sequence[PushResult] | None:
        """Take the step of a round, or accumulate the round for a later step; return the replies to its pushes.

        Return None if a push was withdrawn from the round meanwhile, as `is_whole` tells. Raise `Refused` for a push
        that cannot be part of any step, `RoundBroken` or `MemoryExceeded`, and change nothing then; or `JobFailed`.
        """
        pending = self._state.accumulation.count
        # Only the writer adds rounds, so the count stays as it is until this action ends.
        steps = pending > 0 if round_.pushes[0].header.flush else pending + 1 >= self.settings.now.rounds
        into = await self._spare() if steps else None
        if not is_whole():
            return None  # broken off while it waited for readers
        edits = self._edits_of(round_)
        self._check(round_, edits)
        with self._memory.with_options(edits) if edits else nullcontext():
            return await self._carry_out(round_, edits, into)

    async def _carry_out(self, round_: AnyRound, edits: OptionEdits, into: WeightSet | None) -> Sequence[PushResult]:
        """Reduces a round that can be part of a step, and takes the event that it makes."""
        state, groups, settings = self._state, self._state.groups, self.settings.now
        pending, first = state.accumulation.count, round_.pushes[0].header
        self._make_room(round_)
        round_.step_has_begun = True
        # A small job runs everything inline, so it need not count the elements of a gradient.
        is_small = self._offload.is_little(groups.cost(groups.elements))
        elements = 0 if is_small else round_.elements
        reduced = round_.reduce() if is_small else await self._reduce(round_, elements)
        reduced.gradient.cover(groups.extents)
        await self._scale_stale(round_, reduced.gradient, elements)
        nonfinite = () if reduced.is_finite else _nonfinite(round_, reduced)
        if nonfinite and round_.nonfinite == SKIP:
            return await self._skip(round_, edits, nonfinite, nothing_pending=False)
        if first.flush and not pending:
            return await self._skip(round_, edits, (), nothing_pending=True)
        gradient = reduced.gradient
        if settings.rounds > 1 or pending:
            added = await self._weigh(reduced, elements)
            if into is None:
                return await self._add(round_, gradient, added, edits, nonfinite)
            gradient, elements = await self._finish(round_, gradient, added), groups.elements
        assert into is not None
        bounds = self.settings.bounds(edits)
        headers = [push.header for push in round_.pushes]
        clipped = UNCLIPPED
        if bounds is not None or any([header.norms for header in headers]):  # noqa: C419 - a list is faster here
            clipped = await self._bound(gradient, bounds, elements)
        begins = all([header.begins for header in headers])  # noqa: C419
        is_lost = bool(nonfinite) and state.search.is_under_way and not begins and settings.nonfinite != ZERO
        event = Stepped(
            max([push.wall for push in round_.pushes]),
            self._marks(round_, tells_norms=bounds is not None),
            gradient,
            edits,
            nonfinite,
            None if is_lost else loss_of(headers, round_.reduction),
            begins,
            clipped.norm,
            clipped.changed,
            None if clipped.norms is None else tuple(clipped.norms.tolist()),
        )
        return await self._step(event, into, round_)

    def _edits_of(self, round_: AnyRound) -> OptionEdits:
        """Return the edits that a round carries; raise `Refused` for the first push whose options do not fit."""
        try:
            return self.edits(round_.pushes)
        except OptdError:
            for number, push in enumerate(round_.pushes, 1):
                try:
                    self.edits(round_.pushes[:number])
                except OptdError as error:
                    raise Refused(push, error) from None
            raise

    async def _reduce(self, round_: AnyRound, elements: int) -> Reduced:
        return await self._offload.run(self._state.groups.cost(elements), round_.reduce)

    async def _scale_stale(self, round_: AnyRound, gradient: Gradient, elements: int) -> None:
        """Scale the gradient of a push by its staleness, in place, if the policy says so."""
        state = self._state
        if not scales(state.policy) or len(round_.pushes) > 1:
            return
        factor = factor_of(state.policy, staleness_of(state, round_.pushes[0].header))
        if factor == 1:
            return
        assert round_.slot is not None
        compute = self._fold.compute()
        work = partial(scale_gradient, gradient, state.groups.extents, factor, compute)
        await self._offload.run(state.groups.cost(elements), work)

    async def _weigh(self, reduced: Reduced, elements: int) -> tuple[Totals, tuple[float, ...]]:
        groups, compute = self._state.groups, self._fold.compute()
        work = partial(weighted, reduced, groups.extents, compute)
        return await self._offload.run(groups.cost(elements), work)

    async def update(self, update: JobUpdate, origin: Origin) -> None:
        """Change options of the job as a whole, and take the step of accumulated rounds if it becomes due.

        Raise the problem of the update, `MemoryExceeded`, or `RoundBroken` if the system has no memory for the step.
        """
        state = self._state
        edits = job_edits(state, update, origin)
        if not edits:
            return
        assert edits.job is not None
        rounds = self.settings.of(edits.job).rounds
        if not 0 < state.accumulation.count >= rounds:
            with self._memory.with_options(edits):
                await self._fold.take(OptionsChanged(edits))
            self._release_accumulation()
            return
        self._fold.check_not_failed()
        into = await self._spare()
        try:
            state.accumulation.fit(state.groups.extents)
            state.averages.fit(state.groups.extents)
        except OSError as problem:
            raise no_memory(state.name, "the gradients that are added up", problem) from None
        with self._memory.with_options(edits):
            await self._step(Stepped(wall=origin.wall, pushes=(), gradient=None, edits=edits), into, None)

    async def _step(self, event: Stepped, into: WeightSet, round_: AnyRound | None) -> Sequence[PushResult]:
        snapshots, compute = self._fold.snapshots, self._fold.compute()
        compute.into = into
        compute.lacks = lambda extent, slab: snapshots.lacks(into, extent, slab)
        applied = await self._fold.take(event, compute)
        assert applied.gradient is not None
        self._keep_gradient(round_, applied.gradient)
        self._release_accumulation()
        if self._gradient_reads.waiting:
            # No push has been answered yet, so a worker's memory still holds the gradient of the step.
            await self._gradient_reads.run_waiting(applied.gradient, self._offload)
        return applied.replies

    async def _skip(
        self,
        round_: AnyRound,
        edits: OptionEdits,
        nonfinite: tuple[NonfiniteEntries, ...],
        *,
        nothing_pending: bool,
    ) -> Sequence[PushResult]:
        applied = await self._fold.take(Skipped(self._marks(round_), nothing_pending, edits, nonfinite))
        self._give_back(round_)
        return applied.replies

    async def _add(
        self,
        round_: AnyRound,
        gradient: Gradient,
        added: tuple[Totals, tuple[float, ...]],
        edits: OptionEdits,
        nonfinite: tuple[NonfiniteEntries, ...],
    ) -> Sequence[PushResult]:
        weights, row_weights = added
        event = RoundAdded(self._marks(round_), gradient, weights, row_weights, edits, nonfinite)
        applied = await self._fold.take(event)
        self._give_back(round_)
        return applied.replies

    def _marks(self, round_: AnyRound, *, tells_norms: bool = False) -> tuple[Mark, ...]:
        return tuple(
            [mark_of(self._state, push.header, push.digest.checksum, tells_norms=tells_norms) for push in round_.pushes]
        )

    def _give_back(self, round_: AnyRound) -> None:
        if round_.slot is not None:
            self._slots.give_back(round_.slot)

    async def _finish(self, round_: AnyRound, gradient: Gradient, added: tuple[Totals, tuple[float, ...]]) -> Gradient:
        """Return the mean or sum of all rounds, in the slot of the last one. A flush adds no gradient."""
        state, how, compute = self._state, self.settings.now.reduction, self._fold.compute()
        last, extents, slot = (gradient, *added), state.groups.extents, round_.slot
        return await self._offload.run(
            state.groups.cost(state.groups.elements),
            lambda: finished(state.accumulation, last, slot, extents, how, compute),
        )

    async def _bound(self, gradient: Gradient, bounds: Bounds | None, elements: int) -> Clipped:
        """Clip a gradient in place, and return its norms."""
        groups, p, compute = self._state.groups, self.settings.now.norm_type, self._fold.compute()
        return await self._offload.run(
            groups.cost(elements), lambda: bounded(gradient, groups.extents, bounds, p, len(groups), compute)
        )

    def _keep_gradient(self, round_: AnyRound | None, gradient: Gradient) -> None:
        """Record where the gradient of the last step lies, for later reads."""
        self._gradient_reads.borrowed = None
        if round_ is not None and round_.slot is not None:
            self._slots.keep(round_.slot, gradient)
            return
        self._slots.forget()
        if round_ is not None:
            self._gradient_reads.borrowed = BorrowedGradient(round_.pushes[0].header.worker, gradient)

    def _release_accumulation(self) -> None:
        """Release the memory of accumulated rounds once the job no longer accumulates."""
        if not self.settings.accumulates and self._state.accumulation.release():
            self._memory.fit()

    async def _spare(self) -> WeightSet:
        try:
            return await self._fold.snapshots.spare()
        except OSError as problem:
            raise no_memory(self._state.name, "the weights after it", problem) from None

    def _make_room(self, round_: AnyRound) -> None:
        """Allocate what the step of a round needs; raise `RoundBroken` if that is impossible."""
        state = self._state
        if round_.slot is None and self.settings.writes:
            # Options have changed since the round began: it must begin again, with its gradient in a slot.
            raise RoundBroken(job=state.name, why="options of the job have changed")
        accumulates = round_.slot is not None and self.settings.accumulates
        if not accumulates and not state.averages.kept:
            return
        try:
            if accumulates:
                assert round_.slot is not None
                round_.slot.fit(state.groups.extents)
                state.accumulation.fit(state.groups.extents)
            state.averages.fit(state.groups.extents)
        except OSError as problem:
            raise no_memory(state.name, "what is added up and averaged", problem) from None

    def _check(self, round_: AnyRound, edits: OptionEdits) -> None:
        """Raise `Refused` for a push whose evaluation is stale or whose kind of gradient the algorithm cannot take."""
        options = {index: changed.options for index, changed in edits.groups} if edits else {}
        for push in round_.pushes:
            try:
                check_evaluation(self._state, push.header)
                check_fragment(self._state, push.header, accumulates=self.settings.accumulates)
                check_staleness(self._state, push.header)
                check_supported(self._state.groups, options, *round_.has(push))
            except OptdError as error:
                raise Refused(push, error) from None


def _nonfinite(round_: AnyRound, reduced: Reduced) -> tuple[NonfiniteEntries, ...]:
    """Return the entries of a round that were not finite, by push."""
    return tuple(
        NonfiniteEntries(push.header.worker, found.count, found.parameter, push.wall)
        for push, each in zip(round_.pushes, reduced.contributions, strict=True)
        if (found := each.nonfinite) is not None
    )
