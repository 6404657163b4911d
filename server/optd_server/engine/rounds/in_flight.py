"""The way of a push through a job: admission, the policy's decision, its round, the step, the answer."""

import asyncio
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace

from optd_server.engine import decide
from optd_server.engine.clock import Clock
from optd_server.engine.fold import Fold
from optd_server.engine.membership.leases import Leases
from optd_server.engine.offload import Offload
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.committer import Committer, no_memory
from optd_server.engine.rounds.gradient_reads import GradientReads
from optd_server.engine.rounds.lone import AnyRound, LoneRound
from optd_server.engine.rounds.policies.base import Policy
from optd_server.engine.rounds.push import GradientSource, Push, has_gradient, outcome
from optd_server.engine.rounds.requests import Requests
from optd_server.engine.rounds.round import Refused, Round
from optd_server.engine.rounds.waiting import Waiting
from optd_server.engine.step.intake import check_header
from optd_server.engine.writer import Writer
from optd_server.optim.job_options import ZERO
from optd_server.store.gradients import Gradient, Slot, Slots
from optd_wire.errors import InvalidRequest, OptdError, PushPending, PushWithdrawn, RoundBroken
from optd_wire.frames import Received
from optd_wire.values import PushHeader, PushResult


class InFlight:
    """The pushes of one job that are in flight.

    A push is identified by worker, epoch and sequence. A worker has at most one push in flight, and the job's state
    keeps the mark of its last one. So a repeat is recognised at every stage, and this needs little memory.
    """

    def __init__(
        self,
        fold: Fold,
        leases: Leases,
        policy: Policy,
        writer: Writer,
        offload: Offload,
        memory: JobMemory,
        slots: Slots,
        gradient_reads: GradientReads,
        clock: Clock,
    ) -> None:
        self.waiting = Waiting(policy, clock, self._begin, self._let_go)
        self.committer = Committer(fold, memory, slots, gradient_reads, offload)
        self._fold = fold
        self._state = fold.state
        self._leases = leases
        self._writer = writer
        self._offload = offload
        self._memory = memory
        self._slots = slots
        self._gradient_reads = gradient_reads
        self._clock = clock
        self._under_way: dict[str, Push] = {}
        """By worker."""
        self._rounds: dict[Push, AnyRound] = {}
        self._requests = Requests(slots)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: OptdError | None = None

    # From announcement to step

    def admit(self, header: PushHeader) -> PushResult | Push | None:
        """Admit a push by its identity alone.

        Return the reply to a push that has already been applied, the `Push` of one that is already in flight, or None
        for a new one. Raise `UnknownWorker`, `StaleEpoch`, `SequenceGap`, `PushPending` or `JobFailed`, or the error
        that the pushes were closed with.
        """
        if self._closed is not None:
            raise copy(self._closed)
        member = self._leases.check(header.worker, header.epoch, self._clock.monotonic())
        known = self._under_way.get(header.worker)
        if known is not None:
            if known.header.sequence == header.sequence and known.header.epoch == header.epoch:
                return known
            raise PushPending(worker=header.worker, sequence=known.header.sequence)
        reply = decide.known_reply(member, header)
        if reply is not None:
            return replace(reply, repeat=True)
        self._fold.check_not_failed()
        return None

    async def push(self, header: PushHeader, source: GradientSource) -> PushResult:
        """Receive a gradient, make it part of one step, and wait for the step.

        Raise what `admit` raises, the problem of the header, of a frame or of the options that the push carries,
        `PushWithdrawn`, or `RoundBroken`, after which the caller may send the push again.
        """
        known = self.admit(header)
        if known is not None and not self._supersedes(known):
            await source.skip()
            return await outcome(known)
        push = self._announce(Push(header, None, self._clock.wall()))
        if isinstance(known, Push):
            known.successor = push
        try:
            if not push.begun.is_done:
                source.park()
            round_ = await push.begun.wait()

            async def write(frames: Sequence[Received]) -> None:
                if round_.must_wait(push, frames):
                    source.park()
                await round_.write(push, frames)

            await source.receive(write)
            self._seal(push)
        except BaseException as error:
            self._abandon(push, str(error) if isinstance(error, OptdError) else "its call ended early")
            if isinstance(error, RoundBroken):
                # If this push itself has failed, its own error says more than that of the round.
                return await outcome(push)
            raise
        return await push.outcome.wait()

    async def push_shared(self, header: PushHeader, gradient: Gradient) -> PushResult:
        """Do the same as `push`, for a gradient in the worker's shared memory."""
        known = self.admit(header)
        if known is not None:
            return await outcome(known)
        self._gradient_reads.forget(header.worker)
        return await self._announce(Push(header, gradient, self._clock.wall())).outcome.wait()

    def _announce(self, push: Push) -> Push:
        """Offer an admitted push to the policy; raise the problem of its header or of its options."""
        header = push.header
        check_header(header)
        decide.check_base(self._state, header)
        if header.flush and push.shared is not None and has_gradient(push.shared):
            raise InvalidRequest(problem="a flush brings no gradient, and this one has some in shared memory")
        self._check_kind(push)
        decide.check_evaluation(self._state, header)
        if header.updates:
            # The updates take effect with the step or not at all, so they must be compatible with all waiting pushes.
            self.committer.edits([*self.waiting.pushes, push])
        self._under_way[header.worker] = push
        self._leases.of(header.worker).activity.last_push = push.wall
        self._offer(push)
        return push

    def _offer(self, push: Push) -> None:
        self.waiting.offer(push)
        if not push.begun.is_done:
            self._fold.notify()

    def _check_kind(self, push: Push) -> None:
        """Raise `InvalidRequest` if a flush would share its round with gradients."""
        if not self.waiting.pushes:
            return
        other = next((each for each in self.waiting.pushes if each.header.flush != push.header.flush), None)
        if other is not None:
            waits, comes = ("a flush", "brings gradients") if other.header.flush else ("gradients", "flushes")
            raise InvalidRequest(
                problem=f"worker {other.header.worker!r} waits for its round with {waits}, and worker "
                f"{push.header.worker!r} {comes}: all workers of a round flush, or none does"
            )

    def _supersedes(self, known: PushResult | Push) -> bool:
        """End a push that has not received its whole gradient, because another call has sent it again.

        The first call may hang on a connection that is dead without either side knowing. If the gradient has arrived,
        the push goes on, and both calls get its outcome.
        """
        if not isinstance(known, Push) or known.shared is not None:
            return False
        round_ = self._rounds.get(known)
        if round_ is not None and round_.has_received(known):
            return False
        self._abandon(known, f"the push of worker {known.header.worker!r} was sent again")
        return True

    def _seal(self, push: Push) -> None:
        """Mark the gradient of a push as complete. The step follows when all gradients of the round are."""
        round_ = self._rounds.get(push)
        if round_ is None:
            push.outcome.get()  # raises the error that ended the push meanwhile
            return
        round_.seal(push)
        self.waiting.arrived(push)
        self._step_if_complete(round_)

    def _abandon(self, push: Push, why: str) -> None:
        """End a push whose gradient did not arrive, or that must not count. The other pushes of its round start again.

        This has no effect if the step has begun.
        """
        self._end(push, RoundBroken(job=self._state.name, why=why))

    def withdraw(self, worker: str, why: str) -> None:
        """Withdraw the worker's push, unless its step has begun."""
        push = self._under_way.get(worker)
        if push is not None:
            self._end(push, PushWithdrawn(worker=worker, sequence=push.header.sequence, why=why))

    def withdraw_shared(self, worker: str, why: str) -> None:
        """Withdraw the worker's push if its gradient lies in shared memory."""
        push = self._under_way.get(worker)
        if push is not None and push.shared is not None:
            self.withdraw(worker, why)

    def refuse_waiting(self, error: OptdError) -> None:
        """Answer all pushes that are waiting for their round with `error`."""
        for push in tuple(self.waiting.pushes):
            self._end(push, error)

    def close(self, error: OptdError) -> None:
        """Refuse every push to come with `error`; `fail_all` answers those in flight."""
        self._closed = error

    def fail_all(self, error: OptdError) -> None:
        """Answer every push in flight with `error`."""
        for push in tuple(self._under_way.values()):
            round_ = self._rounds.get(push)
            if round_ is None:
                self._end(push, error)
            else:
                self._break_all(round_, error)

    def exchange(self, policy: Policy, workers: Iterable[str]) -> None:
        """Replace the policy, and offer the waiting pushes to the new one; `workers` are those that take part."""
        for push in self.waiting.exchange(policy, workers):
            self._offer_again(push)

    # Rounds

    def _begin(self, due: Sequence[Push]) -> None:
        """Begin a round as soon as a slot for its gradient is free, if it needs one."""
        shared = len(due) == 1 and due[0].shared is not None
        if shared and not self._needs_slot(due[0]):
            self._start(due, None)
        else:
            self._requests.make(due, self._start)

    def _needs_slot(self, push: Push) -> bool:
        """Whether a gradient in shared memory is copied to a slot: if it is written to, or must not change any more.

        A copy costs about a tenth of a large step.
        """
        return (
            self._fold.keeps_events or self._state.search.is_under_way or self.committer.settings.may_write(push.header)
        )

    def _start(self, due: Sequence[Push], slot: Slot | None) -> None:
        if any([push.outcome.is_done for push in due]):  # noqa: C419 - a list is faster here
            # A push was withdrawn while the round waited for a slot: the others wait for another round.
            left = [push for push in due if not push.outcome.is_done]
            if slot is not None:
                self._slots.give_back(slot)
            for push in left:
                self._offer_again(push)
            return
        state = self._state
        if slot is not None:
            try:
                slot.fit(state.groups.extents)
            except OSError as problem:
                self._slots.give_back(slot)
                for push in due:
                    self._let_go(push, no_memory(state.name, "its gradient", problem))
                return
        settings = self.committer.settings.now
        # A line search may try a step that overflows. It must see that and turn back, so the push is not refused.
        nonfinite = ZERO if state.search.is_under_way else settings.nonfinite
        what = (
            state.groups.extents,
            state.groups.names,
            self._offload,
            nonfinite,
            self._memory.check_rows,
            settings.reduction,
        )
        round_: AnyRound
        if len(due) == 1 and due[0].shared is None and slot is not None:
            round_ = LoneRound(due[0], slot, *what)
        else:
            round_ = Round(due, slot, *what)
        for push in due:
            self._rounds[push] = round_
        if round_.all_shared:
            self._step_if_complete(round_)
        elif isinstance(round_, LoneRound):
            due[0].begun.succeed(round_)
        else:
            self._open(round_)

    def _open(self, round_: Round) -> None:
        """Let the pushes of a round write to their slot."""
        shared = [push for push in round_.pushes if push.shared is not None]
        for push in round_.pushes:
            push.begun.succeed(round_)
        for push in shared:
            self._spawn(self._add_shared(round_, push))

    async def _add_shared(self, round_: Round, push: Push) -> None:
        try:
            await round_.add_shared(push)
        except OptdError as error:
            self._end(push, error)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it ends the steps of this job, and is logged
            self._break_all(round_, self._fold.fail(problem))
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
        self._offer(push)

    def _step_if_complete(self, round_: AnyRound) -> None:
        if round_.complete:
            self._writer.post(lambda: self._take(round_))

    def _end(self, push: Push, error: OptdError) -> None:
        """End a push with an error. If its round has begun but its step has not, that ends the round too."""
        if push.outcome.is_done:
            return  # by now the policy may hold the worker's next push
        round_ = self._rounds.get(push)
        if round_ is not None:
            if not round_.step_has_begun:
                self._break(round_, push, error)
            return
        self._let_go(push, error)
        self.waiting.take_back(push)

    def _break(self, round_: AnyRound, culprit: Push, error: OptdError) -> None:
        """End a round because one of its pushes has failed: the sums so far are useless."""
        why = f"the push of worker {culprit.header.worker!r} came to nothing"
        others = RoundBroken(job=self._state.name, why=why)
        for push in round_.pushes:
            self._let_go(push, error if push is culprit else others)
        self._release(round_)

    def _break_all(self, round_: AnyRound, error: OptdError) -> None:
        """End a round and answer all of its pushes with `error`."""
        for push in round_.pushes:
            self._let_go(push, error)
        self._release(round_)

    def _release(self, round_: AnyRound) -> None:
        slot = round_.slot
        round_.break_off(lambda: None if slot is None else self._slots.give_back(slot))

    def _let_go(self, push: Push, error: OptdError | None = None) -> None:
        """Forget a push that is no longer in flight, and fail it if there is an error."""
        if self._under_way.get(push.header.worker) is push:
            del self._under_way[push.header.worker]
        self._rounds.pop(push, None)
        self._requests.forget(push)
        if error is not None:
            push.fail(copy(error))

    # An action of the writer

    async def _take(self, round_: AnyRound) -> None:
        """Take the step of a complete round, and answer its pushes."""
        first = round_.pushes[0]
        if self._rounds.get(first) is not round_:
            return  # the round was ended while it waited for the writer
        try:
            for push in round_.pushes:
                self._check_still_wanted(round_, push)
            replies = await self.committer.commit(round_, lambda: self._rounds.get(first) is round_)
        except Refused as refusal:
            self._break(round_, refusal.push, refusal.error)
        except OptdError as error:
            self._break_all(round_, error)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it ends the steps of this job, and is logged
            self._break_all(round_, self._fold.fail(problem))
        else:
            for push, reply in () if replies is None else zip(round_.pushes, replies, strict=True):
                self._answer(push, reply)

    def _check_still_wanted(self, round_: AnyRound, push: Push) -> None:
        header = push.header
        member = self._state.members.find(header.worker)
        if member is None or member.epoch != header.epoch or not self._leases.holds(header.worker):
            why = "its worker has been fenced"
            raise Refused(push, PushWithdrawn(worker=header.worker, sequence=header.sequence, why=why))
        self._fold.check_not_failed()

    def _answer(self, push: Push, reply: PushResult) -> None:
        self._leases.note_applied(push.header.worker, reply, self._clock.wall())
        self._let_go(push)
        push.outcome.succeed(reply)
