"""The way of a push through a job: admitted, offered to the policy, received in its round, stepped, answered."""

import asyncio
import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from optd_server.engine.membership.workers import Workers
from optd_server.engine.model import Model
from optd_server.engine.offload import Offload
from optd_server.engine.options.history import Origin
from optd_server.engine.rounds.intake import check_header
from optd_server.engine.rounds.push import Push, Upload
from optd_server.engine.rounds.round import Refused, Round
from optd_server.engine.rounds.stepping import Outcome, Stepping, no_memory
from optd_server.engine.writer import Writer
from optd_server.optim.job_options import ZERO
from optd_server.store.gradients import Gradient, Slot
from optd_wire.errors import (
    FutureVersion,
    InvalidRequest,
    JobFailed,
    OptdError,
    PushPending,
    PushWithdrawn,
    RoundBroken,
    SequenceGap,
)
from optd_wire.frames import Received
from optd_wire.values import JobUpdate, PushHeader, PushResult

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
        self._stepping = Stepping(model, offload)
        self._under_way: dict[str, Push] = {}
        self._rounds: dict[Push, Round] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: JobFailed | None = None

    def waits(self, worker: str) -> bool:
        """Whether a push of the worker waits for its round."""
        return any(push.header.worker == worker for push in self._rule.waiting)

    @property
    def failure(self) -> str:
        """Why the job takes no more steps; empty while it does."""
        return "" if self._failed is None else str(self._failed)

    # From announcement to step

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

    async def push(self, header: PushHeader, upload: Upload, now: float, wall: float = 0.0) -> PushResult:
        """Makes a gradient that is to be received part of a step, once; waits for the step.

        `now` is the time by which leases are measured, `wall` that of the epoch. Raises what `admit` raises, what is
        wrong with the header, with a frame or with the options that ride along, `PushWithdrawn`, or `RoundBroken`,
        after which the push may be sent again.
        """
        known = self.admit(header, now)
        if known is not None and not self._supersedes(known):
            await upload.skip()
            return await outcome(known)
        push = self._announce(Push(header, wall=wall))
        if isinstance(known, Push):
            known.successor = push
        try:
            if not push.begun.done():
                upload.park()
            round_ = await push.begins()

            async def write(frames: Sequence[Received]) -> None:
                if round_.must_wait(push, frames):
                    upload.park()
                await round_.write(push, frames)

            await upload.receive(write)
            self._seal(push)
        except BaseException as error:
            self._abandon(push, str(error) if isinstance(error, OptdError) else "its call ended early")
            if isinstance(error, RoundBroken):
                # What has ended this very push says more, if it was not another one of its round.
                return await outcome(push)
            raise
        return await push.result()

    async def push_shared(self, header: PushHeader, gradient: Gradient, now: float, wall: float = 0.0) -> PushResult:
        """As `push`, for a gradient that lies in memory that its worker shares."""
        known = self.admit(header, now)
        if known is not None:
            return await outcome(known)
        self._model.looks.forget(header.worker)
        return await self._announce(Push(header, gradient, wall)).result()

    def _announce(self, push: Push) -> Push:
        """Offers an admitted push to the policy; raises what is wrong with its header or the options in it."""
        header = push.header
        check_header(header)
        version = self._model.version.version
        if header.base_version > version:
            raise FutureVersion(
                worker=header.worker, base_version=header.base_version, job=self._model.name, version=version
            )
        if header.flush and push.shared is not None and _has_gradient(push.shared):
            raise InvalidRequest(problem="a flush brings no gradient, and this one has some in shared memory")
        self._check_kind(push)
        self._stepping.check_evaluation(header)
        # What rides along must go together with what waits; it takes effect with the step, or not at all.
        self._stepping.plan_options([*self._rule.waiting, push])
        self._under_way[header.worker] = push
        due = self._rule.offer(push)
        if due:
            self._begin(due)
        else:
            self._model.notify()
        return push

    def _check_kind(self, push: Push) -> None:
        """Raises `InvalidRequest` where a flush is to share its round with gradients."""
        other = next((each for each in self._rule.waiting if each.header.flush != push.header.flush), None)
        if other is not None:
            waits, comes = ("a flush", "brings gradients") if other.header.flush else ("gradients", "flushes")
            raise InvalidRequest(
                problem=f"worker {other.header.worker!r} waits for its round with {waits}, and worker "
                f"{push.header.worker!r} {comes}: all workers of a round flush, or none does"
            )

    def _supersedes(self, known: PushResult | Push) -> bool:
        """Ends a push whose gradient is still to be received, because it has come again by another call.

        The first call may hang on a connection that is dead without either side knowing. Where the gradient is there,
        the push goes on, and has one outcome for both.
        """
        if not isinstance(known, Push) or known.shared is not None:
            return False
        round_ = self._rounds.get(known)
        if round_ is not None and round_.has_received(known):
            return False
        self._abandon(known, f"the push of worker {known.header.worker!r} was sent again")
        return True

    def _seal(self, push: Push) -> None:
        """Says that the gradient of a push is there; its step follows when those of its round are, too."""
        round_ = self._rounds.get(push)
        if round_ is None:
            push.outcome.result()  # which raises what has ended it meanwhile
            return
        round_.seal(push)
        self._step_if_complete(round_)

    def _abandon(self, push: Push, why: str) -> None:
        """Ends a push whose gradient did not arrive, or that must not count; the others of its round start afresh.

        Nothing happens to one whose step has begun.
        """
        self._end(push, RoundBroken(job=self._model.name, why=why))

    def withdraw(self, worker: str, why: str) -> None:
        """Takes the worker's push back, unless its step has begun."""
        push = self._under_way.get(worker)
        if push is not None:
            self._end(push, PushWithdrawn(worker=worker, sequence=push.header.sequence, why=why))

    def withdraw_shared(self, worker: str, why: str) -> None:
        """As `withdraw`, where the push's gradient lies in memory that the worker shares."""
        push = self._under_way.get(worker)
        if push is not None and push.shared is not None:
            self.withdraw(worker, why)

    def refuse_waiting(self, error: OptdError) -> None:
        """Answers the pushes that wait for their round with `error`."""
        for push in tuple(self._rule.waiting):
            self._end(push, error)

    def fail_all(self, error: OptdError) -> None:
        """Answers every push that is under way with `error`."""
        for push in tuple(self._under_way.values()):
            round_ = self._rounds.get(push)
            if round_ is None:
                self._end(push, error)
            else:
                self._break_all(round_, error)

    # Rounds

    def _begin(self, due: Sequence[Push]) -> None:
        """Begins a round, when there is room for its gradient."""
        shared = len(due) == 1 and due[0].shared is not None
        may_write = self._model.searches.is_under_way or self._model.conditioning.may_write(due[0].header)
        if shared and not may_write:
            self._start(due, None)
        else:
            self._model.slots.take(lambda slot: self._start(due, slot))

    def _start(self, due: Sequence[Push], slot: Slot | None) -> None:
        left = [push for push in due if not push.outcome.done()]
        if len(left) < len(due):
            # One has been taken back while all waited for room: the others wait for another one.
            if slot is not None:
                self._model.slots.give_back(slot)
            for push in left:
                self._offer_again(push)
            return
        groups = self._model.groups
        if slot is not None:
            try:
                slot.fit(groups.extents)
            except OSError as problem:
                self._model.slots.give_back(slot)
                for push in due:
                    self._let_go(push, no_memory(self._model.name, "its gradient", problem))
                return
        # What a search tries may be beyond all numbers: it is told so, and turns round.
        nonfinite = ZERO if self._model.searches.is_under_way else self._model.conditioning.nonfinite
        check_room = self._model.check_rows
        reduction = self._model.conditioning.reduction
        round_ = Round(due, slot, groups.extents, groups.names, self._offload, nonfinite, check_room, reduction)
        for push in due:
            self._rounds[push] = round_
        if round_.all_shared:
            self._step_if_complete(round_)
        elif len(due) == 1:
            due[0].begun.set_result(round_)
        else:
            self._open(round_)

    def _open(self, round_: Round) -> None:
        """Lets several pushes write to their slot."""
        shared = [push for push in round_.pushes if push.shared is not None]
        for push in round_.pushes:
            if not push.begun.done():
                push.begun.set_result(round_)
        for push in shared:
            self._spawn(self._add_shared(round_, push))

    async def _add_shared(self, round_: Round, push: Push) -> None:
        try:
            await round_.add_shared(push)
        except OptdError as error:
            self._end(push, error)
        else:
            self._step_if_complete(round_)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _offer_again(self, push: Push) -> None:
        try:
            self._check_kind(push)
        except InvalidRequest as error:
            self._let_go(push, error)
            return
        due = self._rule.offer(push)
        if due:
            self._begin(due)

    def _step_if_complete(self, round_: Round) -> None:
        if round_.complete:
            self._writer.submit(lambda: self._take(round_))

    def _end(self, push: Push, error: OptdError) -> None:
        """Ends a push with an error, and with it its round, if that has begun and is not stepping yet."""
        if push.outcome.done():
            return  # what the rule has of the worker by now is its next push
        round_ = self._rounds.get(push)
        if round_ is None:
            self._rule.withdraw(push.header.worker)
            self._let_go(push, error)
        elif not round_.stepping:
            self._break(round_, push, error)

    def _break(self, round_: Round, culprit: Push, error: OptdError) -> None:
        """Ends a round that one of its pushes has spoilt: what has been added up already is of no use."""
        why = f"the push of worker {culprit.header.worker!r} came to nothing"
        others = RoundBroken(job=self._model.name, why=why)
        slot = round_.slot
        for push in round_.pushes:
            self._let_go(push, error if push is culprit else others)
        round_.break_off(lambda: None if slot is None else self._model.slots.give_back(slot))

    def _let_go(self, push: Push, error: OptdError | None = None) -> None:
        """Ends the account of a push."""
        if self._under_way.get(push.header.worker) is push:
            del self._under_way[push.header.worker]
        self._rounds.pop(push, None)
        if error is not None:
            push.fail(copy(error))

    # Actions of the writer

    async def _take(self, round_: Round) -> None:
        """Makes the step of a round whose gradients are there."""
        if self._rounds.get(round_.pushes[0]) is not round_:
            return  # broken off while it waited for the writer
        try:
            for push in round_.pushes:
                self._check_still_wanted(round_, push)
            await self._step(round_)
        except Refused as refusal:
            self._break(round_, refusal.push, refusal.error)
        except OptdError as error:
            self._break_all(round_, error)
        except Exception as problem:
            logger.exception("job %s failed after version %d", self._model.name, self._model.version.version)
            self._fail(round_, problem)

    async def update(self, update: JobUpdate, origin: Origin) -> None:
        """Changes options of the job as a whole, and makes the step that they make due; see `Stepping.update`."""
        if self._failed is not None:
            self._model.update(update, origin)
            return
        try:
            await self._stepping.update(update, origin)
        except OptdError:
            raise
        except Exception as problem:
            logger.exception("job %s failed after version %d", self._model.name, self._model.version.version)
            raise copy(self._failure_of(problem)) from None

    def _check_still_wanted(self, round_: Round, push: Push) -> None:
        header = push.header
        worker = self._workers.find(header.worker)
        if worker is None or worker.epoch != header.epoch or not worker.active:
            why = "its worker has been fenced"
            raise Refused(push, PushWithdrawn(worker=header.worker, sequence=header.sequence, why=why))
        self._check_not_failed()
        try:
            before = round_.pushes[: round_.pushes.index(push)]
            self._stepping.plan_options([*before, push])
        except OptdError as error:
            raise Refused(push, error) from None

    def _check_not_failed(self) -> None:
        if self._failed is not None:
            # A new one each time: an error that is raised again and again drags along all tracebacks.
            raise copy(self._failed)

    async def _step(self, round_: Round) -> None:
        outcome = await self._stepping.take(round_, lambda: self._rounds.get(round_.pushes[0]) is round_)
        if outcome is not None:
            for push in round_.pushes:
                self._answer(push, outcome)

    def _answer(self, push: Push, outcome: Outcome) -> None:
        """Marks a push as dealt with and answers its callers.

        One that has been `accumulated` becomes part of the version that comes next.
        """
        header = push.header
        version = self._model.version
        moved_on = header.known_revision != version.revision
        still_to_come = bool(outcome.accumulated and not outcome.skipped)
        result = PushResult(
            version=version,
            applied_version=0 if outcome.nothing_pending else version.version + still_to_come,
            staleness=max(0, outcome.stepped_from - header.base_version),
            repeat=False,
            options=tuple(self._model.groups.options) if moved_on else (),
            accumulated=outcome.accumulated,
            skipped=outcome.skipped,
            unfinished=outcome.unfinished,
            clipped=outcome.clipped,
            norms=outcome.norms_for(header),
            effective=self._model.effective(),
        )
        self._workers.mark(header.worker, header.epoch, header.sequence, result)
        self.applied += not (outcome.skipped or header.flush)
        self._let_go(push)
        push.succeed(result)

    def _break_all(self, round_: Round, error: OptdError) -> None:
        """Ends a round as a whole."""
        slot = round_.slot
        for push in round_.pushes:
            self._let_go(push, error)
        round_.break_off(lambda: None if slot is None else self._model.slots.give_back(slot))

    def _fail(self, round_: Round, problem: Exception) -> None:
        """Ends the job's steps: its state may have changed half-way, and no further step would be right."""
        self._break_all(round_, self._failure_of(problem))
        self._model.notify()

    def _failure_of(self, problem: Exception) -> JobFailed:
        version = self._model.version.version
        self._failed = JobFailed(job=self._model.name, version=version, problem=repr(problem)[:200])
        return self._failed


def _has_gradient(gradient: Gradient) -> bool:
    return bool(gradient.rows) or any(flags.any() for row in gradient.presence for flags in row)


async def outcome(known: PushResult | Push) -> PushResult:
    """The result of a push for a call that it is a repeat for. The caller may be cancelled; the push goes on."""
    while isinstance(known, Push):
        push = known
        try:
            known = await push.result()
        except RoundBroken:
            if push.successor is None:
                raise
            known = push.successor
    return replace(known, repeat=True)
