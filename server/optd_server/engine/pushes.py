"""The way of a push through a job: admitted, received, offered to the policy, stepped, answered."""

import asyncio
import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from optd_server.engine.model import Model
from optd_server.engine.offload import Offload
from optd_server.engine.push import Push
from optd_server.engine.step import reduce_round, seal_and_check, take_step
from optd_server.engine.workers import Workers
from optd_server.engine.writer import Writer
from optd_server.store.gradients import GradientSlot, GradientSlots
from optd_wire.errors import JobFailed, OptdError, PushPending, PushWithdrawn, SequenceGap
from optd_wire.values import GroupOptions, PushHeader, PushResult

logger = logging.getLogger(__name__)


class Pushes:
    """The pushes of one job: those under way, and the marks of those that have been applied.

    A push is known by worker, epoch and sequence. Of each worker one push is under way at a time, and the mark of
    its last one is kept: so a repeat is recognised at every stage, and the account stays small.
    """

    def __init__(self, model: Model, workers: Workers, writer: Writer, offload: Offload) -> None:
        self.applied = 0
        self._model = model
        self._rule = model.rule
        self._workers = workers
        self._writer = writer
        self._offload = offload
        # Where the policy does not reduce, the gradient of the last step stays in the slot that it came in.
        self._slots = GradientSlots(most=self._rule.slots + (0 if self._rule.reduces else 1))
        self._reduction: GradientSlot | None = None
        self._under_way: dict[str, Push] = {}
        self._failed: JobFailed | None = None

    def waits(self, worker: str) -> bool:
        """Whether a push of the worker waits for its round."""
        return any(push.header.worker == worker for push in self._rule.waiting)

    def admit(self, header: PushHeader, now: float) -> PushResult | Push | None:
        """Decides about a push from its identity alone.

        Returns the result of one that has been applied, the push itself where it is under way already, or None for
        a new one. Raises `UnknownWorker`, `StaleEpoch`, `SequenceGap`, `PushPending` or `JobFailed`.
        """
        worker = self._workers.check(header.worker, header.epoch, now)
        known = self._under_way.get(header.worker)
        if known is not None:
            if known.header.sequence == header.sequence and known.header.epoch == header.epoch:
                return known
            raise PushPending(worker=header.worker, sequence=known.header.sequence)
        if worker.reply is not None and header.sequence == worker.sequence:
            return replace(worker.reply, repeat=True)
        if header.sequence != worker.sequence + 1:
            raise SequenceGap(
                worker=header.worker,
                sequence=header.sequence,
                expected=worker.sequence + 1,
                last=worker.sequence,
            )
        self._check_not_failed()
        return None

    async def take_slot(self) -> GradientSlot:
        """Room for the gradient of a push; waits while as many as the policy keeps are under way."""
        return await self._slots.take(self._model.groups.layouts, self._model.groups.names)

    def give_back(self, slot: GradientSlot) -> None:
        """Returns the room of a push that came to nothing."""
        self._slots.give_back(slot)

    async def push(self, header: PushHeader, slot: GradientSlot, now: float) -> PushResult:
        """Makes a gradient that has been received part of a step, once; owns the slot from here on.

        Waits for the step. Raises what `admit` raises, `IncompleteParameter`, `NonfiniteGradient`, what is wrong
        with the options that ride along, or `PushWithdrawn`.
        """
        try:
            await self._offload.run(
                self._model.cost(self._model.elements),
                lambda: seal_and_check(slot, self._offload.kernels, self._offload.threads),
            )
            # The same push may have come in twice at the same time: only the first one to get here goes on.
            known = self.admit(header, now)
        except BaseException:
            self.give_back(slot)
            raise
        if known is not None:
            self.give_back(slot)
            return await outcome(known)
        push = Push(header, slot)
        self._under_way[header.worker] = push
        try:
            await self._writer.run(lambda: self._take(push))
        except OptdError as error:  # the job was deleted before its writer came to this push
            self._refuse((push,), error)
        return await asyncio.shield(push.outcome)

    def withdraw(self, worker: str, why: str) -> None:
        """Takes the worker's push out of its round, if it waits in one."""
        push = self._rule.withdraw(worker)
        if push is not None:
            self._let_go(push)
            push.fail(PushWithdrawn(worker=worker, sequence=push.header.sequence, why=why))

    def refuse_waiting(self, error: OptdError) -> None:
        """Takes all pushes out of their round and answers them with `error`."""
        for push in tuple(self._rule.waiting):
            self._rule.withdraw(push.header.worker)
            self._refuse((push,), error)

    def fail_all(self, error: OptdError) -> None:
        """Answers every push that is under way with `error`."""
        self._refuse(tuple(self._under_way.values()), error)

    def close(self, error: OptdError) -> None:
        """Answers those who wait for room with `error`."""
        self._slots.close(error)

    @property
    def failure(self) -> str:
        """Why the job takes no more steps; empty while it does."""
        return "" if self._failed is None else str(self._failed)

    # Actions of the writer

    async def _take(self, push: Push) -> None:
        """Offers a push to the policy, and takes the step that becomes due."""
        due: Sequence[Push] = (push,)
        try:
            self._check_still_wanted(push.header)
            # What rides along must go together with what waits; it takes effect with the step, or not at all.
            self._plan_options([*self._rule.waiting, push])
            due = self._rule.offer(push)
            if due:
                await self._step(due)
            else:
                self._model.notify()
        except OptdError as error:
            self._refuse(due, error)
        except Exception as problem:
            logger.exception("job %s failed after version %d", self._model.name, self._model.version.version)
            self._fail(due, problem)

    def _check_still_wanted(self, header: PushHeader) -> None:
        worker = self._workers.find(header.worker)
        if worker is None or worker.epoch != header.epoch or not worker.active:
            raise PushWithdrawn(worker=header.worker, sequence=header.sequence, why="its worker has been fenced")
        self._check_not_failed()

    def _check_not_failed(self) -> None:
        if self._failed is not None:
            # A new one each time: an error that is raised again and again drags along all tracebacks.
            raise copy(self._failed)

    def _plan_options(self, pushes: Sequence[Push]) -> list[tuple[int, GroupOptions]]:
        """The options that the groups have after what rides along with these pushes, one after the other."""
        updates = [update for push in pushes for update in push.header.updates]
        return self._model.groups.plan_updates(updates, self._model.name, self._model.version.version)

    async def _step(self, pushes: Sequence[Push]) -> None:
        model = self._model
        stepped_from = model.version.version
        pushes_left = self._without_conflicts(pushes)
        if len(pushes_left) < len(pushes):
            return
        weights = await model.snapshots.spare()
        gradient = self._room_for_gradient(pushes)
        model.change_options(self._plan_options(pushes))

        kernels, threads = self._offload.kernels, self._offload.threads

        def arithmetic() -> None:
            for push in pushes:
                push.slot.pad(model.groups.layouts)
            if gradient is not pushes[0].slot:
                reduce_round(model.groups, [push.slot for push in pushes], gradient, kernels, threads)
            current = model.snapshots.current.weights.buffers
            take_step(model.groups, gradient, current, weights.buffers, kernels, threads)

        await self._offload.run(model.cost(model.elements * len(pushes)), arithmetic)
        self._keep_gradient(gradient)
        model.publish_step(weights)
        for push in pushes:
            self._answer(push, stepped_from)

    def _without_conflicts(self, pushes: Sequence[Push]) -> Sequence[Push]:
        """The pushes whose options go together with what has become of the job while they waited.

        One whose options do not is refused; the others wait again, for another push of its worker.
        """
        left: list[Push] = []
        for push in pushes:
            try:
                self._plan_options([*left, push])
                left.append(push)
            except OptdError as error:
                self._refuse((push,), error)
        if len(left) < len(pushes):
            for push in left:
                self._rule.offer(push)
        return left

    def _refuse(self, pushes: Sequence[Push], error: OptdError) -> None:
        """Ends pushes that have changed nothing."""
        for push in pushes:
            self._let_go(push)
            push.fail(copy(error))

    def _room_for_gradient(self, pushes: Sequence[Push]) -> GradientSlot:
        """Where the gradient of the step lies: in the only push, or where a round is reduced to."""
        if not self._rule.reduces:
            return pushes[0].slot
        if self._reduction is None:
            self._reduction = GradientSlot(self._model.groups.layouts, self._model.groups.names)
        self._reduction.reset(self._model.groups.layouts, self._model.groups.names)
        return self._reduction

    def _keep_gradient(self, gradient: GradientSlot) -> None:
        last, self._model.gradient = self._model.gradient, gradient
        if last is not None and last is not self._reduction:
            self._slots.give_back(last)

    def _answer(self, push: Push, stepped_from: int) -> None:
        """Marks a push as applied and answers its callers."""
        header = push.header
        version = self._model.version
        moved_on = header.known_revision != version.revision
        result = PushResult(
            version=version,
            applied_version=version.version,
            staleness=max(0, stepped_from - header.base_version),
            repeat=False,
            options=tuple(self._model.groups.options) if moved_on else (),
        )
        self._workers.mark(header.worker, header.epoch, header.sequence, result)
        self.applied += 1
        self._let_go(push)
        push.succeed(result)

    def _let_go(self, push: Push) -> None:
        """Ends the account of a push; its slot is free unless the gradient of the last step lies there."""
        if self._under_way.get(push.header.worker) is push:
            del self._under_way[push.header.worker]
        if push.slot is not self._model.gradient:
            self._slots.give_back(push.slot)

    def _fail(self, pushes: Sequence[Push], problem: Exception) -> None:
        """Ends the job's steps: its state may have changed half-way, and no further step would be right."""
        self._failed = JobFailed(job=self._model.name, version=self._model.version.version, problem=repr(problem)[:200])
        self._refuse(pushes, self._failed)
        self._model.notify()


async def outcome(known: PushResult | Push) -> PushResult:
    """The result of a push that is a repeat. Its caller may be cancelled; the push goes on."""
    if isinstance(known, Push):
        known = await asyncio.shield(known.outcome)
    return replace(known, repeat=True)
