"""The step of a round whose gradients are there: what is done to them, with them, and where it ends.

Actions of the job's writer: one at a time. Who is to be answered, and how, is no business of this module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optd_server.engine.gradients import UNCLIPPED
from optd_server.engine.intake import loss_of
from optd_server.engine.looks import Lent
from optd_server.engine.model import Model
from optd_server.engine.norms import norms_of_step
from optd_server.engine.offload import Offload
from optd_server.engine.option_changes import Origin
from optd_server.engine.push import Push
from optd_server.engine.round import Refused, Round
from optd_server.engine.row_rules import check_gradients
from optd_server.engine.step import Step
from optd_server.optim import option
from optd_server.optim.clipping import Clipped
from optd_server.optim.job_options import ACCUMULATE, ZERO
from optd_server.store.gradients import Gradient
from optd_server.store.snapshots import WeightSet
from optd_wire.errors import InvalidRequest, LossMissing, OptdError, RoundBroken, StaleEvaluation
from optd_wire.values import GroupNorms, GroupOptions, GroupUpdate, JobUpdate, PushHeader


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a round, and the version that it found."""

    stepped_from: int
    accumulated: int = 0
    """How many rounds are added up for a step that is still to come; 0 where there was one."""
    skipped: bool = False
    """Whether there was none, and is to be none."""
    unfinished: bool = False
    """Whether the algorithm asks about the new weights, before its step is at its end."""
    nothing_pending: bool = False
    """Whether there was no step because it was to be one of what is added up, and nothing was."""
    clipped: bool = False
    """Whether the gradient has been made smaller."""
    norms: tuple[GroupNorms, ...] = ()
    for_all: bool = False
    """Whether norms are for all pushes, and not only for those that have asked."""

    def norms_for(self, header: PushHeader) -> tuple[GroupNorms, ...]:
        """The norms that the answer of a push tells."""
        return self.norms if self.for_all or header.norms else ()


def no_memory(job: str, what: str, problem: OSError) -> RoundBroken:
    """The error of a push that the system has no memory for."""
    why = f"the server gets no memory for {what}: {problem.strerror or problem}"
    return RoundBroken(job=job, why=why)


def _updates(pushes: Sequence[Push]) -> list[tuple[GroupUpdate, Origin]]:
    return [(update, Origin(push.wall, push.header.worker)) for push in pushes for update in push.header.updates]


class Stepping:
    """Takes the steps of one job."""

    def __init__(self, model: Model, offload: Offload) -> None:
        self._model = model
        self._offload = offload

    def plan_options(self, pushes: Sequence[Push]) -> list[tuple[int, GroupOptions]]:
        """The options that the groups have after what rides along with these pushes, one after the other."""
        updates = [update for push in pushes for update in push.header.updates]
        if not updates:
            return []
        return self._model.groups.plan_updates(updates, self._model.name, self._model.version.version)

    async def take(self, round_: Round, is_whole: Callable[[], bool]) -> Outcome | None:
        """Makes a round a step, or adds it up for one; returns None where it is no longer whole, as `is_whole` tells.

        Raises `Refused` for a push that cannot be part of any step, or `RoundBroken`; nothing has changed then.
        """
        model, conditioning = self._model, self._model.conditioning
        version = model.version.version
        # Of what has been added up when this round comes; nobody adds to it while the writer is here.
        steps = conditioning.pending > 0 if round_.flushes else not conditioning.waits_for_more
        weights = await self._spare() if steps else None
        if not is_whole():
            return None  # broken off while it waited for readers
        changes = self.plan_options(round_.pushes)
        self._check_evaluations(round_)
        self._check_gradients(round_, dict(changes))
        self._check_room(round_)
        round_.stepping = True
        elements = round_.elements
        gradient: Gradient | None = await self._offload.run(model.cost(elements), round_.gradient)
        assert gradient is not None
        if changes:
            model.change_options(changes, _updates(round_.pushes))
        conditioning.note_nonfinite(round_, version)
        if round_.skipped:
            conditioning.note_skip()
            self._let_go(round_)
            return Outcome(version, accumulated=conditioning.pending, skipped=True)
        if round_.flushes and not conditioning.pending:
            self._let_go(round_)
            return Outcome(version, nothing_pending=True)
        gradient.cover(model.groups.extents)
        sums_up = conditioning.accumulates
        if sums_up:
            gradient = await self._accumulate(round_, gradient, last=weights is not None)
        if gradient is None or weights is None:
            return Outcome(version, accumulated=conditioning.pending)
        wall = max(push.wall for push in round_.pushes)
        return await self._step_with(gradient, weights, model.elements if sums_up else elements, round_, wall)

    async def update(self, update: JobUpdate, origin: Origin) -> None:
        """Changes options of the job as a whole; makes the step of what has been added up, where they make it due.

        Raises what `Model.update` raises, or `RoundBroken` where the system has no memory for the step.
        """
        model, conditioning = self._model, self._model.conditioning
        rounds = option.integer(model.planned_options(update).options, ACCUMULATE)
        due = 0 < conditioning.pending >= rounds
        if not due:
            model.update(update, origin)
            return
        weights, sums, extents = await self._spare(), conditioning.accumulation, model.groups.extents
        try:
            sums.fit(None, extents)
            model.update(update, origin)
            # Averages that the update has begun are among them: without room there is no step, and it is due still.
            model.averages.fit(extents)
        except OSError as problem:
            raise no_memory(model.name, "what is added up and averaged", problem) from None
        cost, how = model.cost(model.elements), conditioning.reduction
        gradient = await self._offload.run(cost, lambda: sums.finish(None, extents, self._offload, how))
        await self._step_with(gradient, weights, model.elements, None, origin.wall)
        model.release_accumulation()

    async def _step_with(
        self, gradient: Gradient, weights: WeightSet, elements: int, round_: Round | None, wall: float
    ) -> Outcome:
        """Steps into a spare set of weights, and publishes it. The gradient has so many elements.

        `round_` is the one that has brought the gradient, or the last of it; None: it had all been added up. `wall` is
        the time, in seconds of the epoch.
        """
        model, conditioning = self._model, self._model.conditioning
        version = model.version.version
        headers = [] if round_ is None else [push.header for push in round_.pushes]
        if headers and all(header.begins for header in headers):
            model.searches.abandon()
        clipped = await self._clip(gradient, elements, headers)
        step = Step(
            model.groups, version, model.snapshots, gradient, weights, model.searches, self._loss(round_, headers)
        )
        await self._offload.run(model.cost(step.elements), lambda: step.take(self._offload))
        if step.is_done:
            await self._average(version + 1, weights)
        norms = await self._norms(clipped, step, weights)
        conditioning.note(clipped)
        self._keep_gradient(round_, gradient)
        model.publish_step(weights, step.changes, wall)
        if model.looks.waiting:
            # Nobody has been answered yet: what lies in a worker's memory is still what the step was made of.
            await model.looks.serve(gradient, self._offload)
        return Outcome(
            version,
            unfinished=not step.is_done,
            clipped=clipped.changed,
            norms=norms,
            for_all=conditioning.clips,
        )

    async def _clip(self, gradient: Gradient, elements: int, headers: Sequence[PushHeader]) -> Clipped:
        """Clips a gradient in place, and computes its norms, where the job or a push asks for that."""
        model, conditioning = self._model, self._model.conditioning
        if not conditioning.clips and not any(header.norms for header in headers):
            return UNCLIPPED
        effective = model.groups.effective(model.version.version)
        return await self._offload.run(
            model.cost(elements), lambda: conditioning.apply(gradient, effective, self._offload)
        )

    def _loss(self, round_: Round | None, headers: Sequence[PushHeader]) -> float | None:
        """The loss of an evaluation; None where a search has tried what is beyond all numbers."""
        conditioning = self._model.conditioning
        if round_ is None:
            return loss_of(headers, conditioning.reduction)
        if self._model.searches.is_under_way and conditioning.nonfinite != ZERO and round_.nonfinite:
            return None
        return loss_of(headers, round_.reduction)

    async def _average(self, version: int, weights: WeightSet) -> None:
        """Lets the weights of a version enter the averages that are due."""
        model, threads = self._model, self._offload.threads
        due = model.averages.due(version)
        if due:
            cost = model.cost(model.elements)
            await self._offload.run(cost, lambda: model.averages.update(due, weights.buffers, threads))

    async def _norms(self, clipped: Clipped, step: Step, weights: WeightSet) -> tuple[GroupNorms, ...]:
        """The norms of a step that has been taken and not published, where those of its gradient are known."""
        model, found = self._model, clipped.norms
        if found is None:
            return ()
        before, p = model.snapshots.current.weights.buffers, model.conditioning.norm_type
        return await self._offload.run(
            model.cost(step.elements),
            lambda: norms_of_step(model.groups, found, before, weights.buffers, step.changes, p, self._offload),
        )

    def _keep_gradient(self, round_: Round | None, gradient: Gradient) -> None:
        """Notes where the gradient of the last step lies, for those who look at it."""
        model = self._model
        model.looks.lent = None
        if round_ is not None and round_.slot is not None:
            model.slots.keep(round_.slot, gradient)
            return
        model.slots.forget()
        if round_ is not None:
            model.looks.lent = Lent(round_.pushes[0].header.worker, gradient)

    async def _spare(self) -> WeightSet:
        try:
            return await self._model.snapshots.spare()
        except OSError as problem:
            raise no_memory(self._model.name, "the weights after it", problem) from None

    def _check_room(self, round_: Round) -> None:
        """Raises `RoundBroken` where what is to be done to the gradient of a round cannot be done."""
        conditioning, extents = self._model.conditioning, self._model.groups.extents
        if round_.slot is None and conditioning.writes:
            # Options have changed since it began: with the gradient in a slot it begins anew.
            raise RoundBroken(job=self._model.name, why="options of the job have changed")
        try:
            if round_.slot is not None and conditioning.accumulates:
                conditioning.accumulation.fit(round_.slot, extents)
            self._model.averages.fit(extents)
        except OSError as problem:
            raise no_memory(self._model.name, "what is added up and averaged", problem) from None

    async def _accumulate(self, round_: Round, gradient: Gradient, *, last: bool) -> Gradient | None:
        """Adds a round to those before it; returns the mean or sum of all if it is the last one."""
        model, sums = self._model, self._model.conditioning.accumulation
        assert round_.slot is not None, "what is added up lies in a slot"
        slot, extents = round_.slot, model.groups.extents
        if not round_.flushes:
            cost = model.cost(round_.elements)
            await self._offload.run(cost, lambda: sums.add(round_, gradient, extents, self._offload))
        if last:
            cost, how = model.cost(model.elements), model.conditioning.reduction
            finished = await self._offload.run(cost, lambda: sums.finish(slot, extents, self._offload, how))
            model.release_accumulation()
            return finished
        model.slots.give_back(slot)
        model.notify()
        return None

    def _let_go(self, round_: Round) -> None:
        """Ends a round that no step is made of; the job is where it was."""
        if round_.slot is not None:
            self._model.slots.give_back(round_.slot)
        self._model.notify()

    def check_evaluation(self, header: PushHeader) -> None:
        """Raises `LossMissing`, `StaleEvaluation` or `InvalidRequest` for a push that the algorithm did not ask for."""
        model, algorithm = self._model, self._model.groups.iterative
        if header.flush:
            return
        if algorithm is None:
            if header.loss is not None:
                names = ", ".join(each.name for each in model.groups.distinct_algorithms)
                take = "take" if " " in names else "takes"
                raise InvalidRequest(problem=f"{names} {take} gradients alone, and a push has a loss")
            return
        if header.loss is None:
            raise LossMissing(algorithm=algorithm.name)
        version = model.version.version
        if header.base_version != version:
            evaluated = f"of version {header.base_version}"
        elif header.known_revision < model.written_revision:
            evaluated = "before they were written anew"
        else:
            return
        raise StaleEvaluation(
            algorithm=algorithm.name, job=model.name, version=version, worker=header.worker, evaluated=evaluated
        )

    def _check_evaluations(self, round_: Round) -> None:
        for push in round_.pushes:
            try:
                self.check_evaluation(push.header)
            except OptdError as error:
                raise Refused(push, error) from None

    def _check_gradients(self, round_: Round, changes: Mapping[int, GroupOptions]) -> None:
        """Raises `Refused` for a push that has gradients of a kind that the algorithm does not take."""
        options = {index: changed.options for index, changed in changes.items()}
        for push in round_.pushes:
            try:
                check_gradients(self._model.groups, options, *round_.has(push))
            except OptdError as error:
                raise Refused(push, error) from None
