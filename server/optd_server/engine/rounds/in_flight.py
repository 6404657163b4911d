"""The way of a push through a job: admission, the gradient, the policy's decision, the answer."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace

from optd_server.engine import decide
from optd_server.engine.clock import Clock
from optd_server.engine.fold import Fold
from optd_server.engine.membership.leases import Leases
from optd_server.engine.offload import Offload
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.admission import check_flush, check_repeated, check_same, problem_of_kinds
from optd_server.engine.rounds.committer import Committer
from optd_server.engine.rounds.due import DueRounds
from optd_server.engine.rounds.gradient_reads import GradientReads
from optd_server.engine.rounds.holding import Holding
from optd_server.engine.rounds.policies.base import Policy
from optd_server.engine.rounds.push import GradientSource, Push, Receiver
from optd_server.engine.rounds.spool import Spool
from optd_server.engine.rounds.waiting import Waiting
from optd_server.engine.step.intake import check_header
from optd_server.engine.writer import Writer
from optd_server.store.gradients import Gradient, Slots
from optd_wire.errors import (
    OptdError,
    PushPending,
    PushWithdrawn,
    RoundBroken,
    RoundClosed,
)
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
        self.waiting = Waiting(policy, clock, fold.state, leases, self._begin, self._let_go)
        self.committer = Committer(fold, memory, slots, gradient_reads, offload)
        self._due = DueRounds(
            fold,
            leases,
            self.waiting,
            self.committer,
            writer,
            offload,
            memory,
            slots,
            self._offer,
            self._let_go,
        )
        self._fold = fold
        self._state = fold.state
        self._leases = leases
        self._offload = offload
        self._gradient_reads = gradient_reads
        self._clock = clock
        self._under_way: dict[str, Push] = {}
        """By worker."""
        self._room = Holding(memory)
        self._closed: OptdError | None = None
        fold.watch(self._note_failure)

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
            with self._calling(known) if isinstance(known, Push) else nullcontext():
                await check_repeated(self._state, header, known, source, self._offload)
                return await self._outcome(known)
        push = self._announce(Push(header, None, self._clock.wall()))
        if isinstance(known, Push):
            known.successor = push
        with self._calling(push):
            try:
                if not push.begun.is_done:
                    source.park()
                receiver = await push.begun.wait()
                await push.receive(source, receiver)
                self._seal(push, receiver)
            except BaseException as error:
                self._abandon(push, str(error) if isinstance(error, OptdError) else "its call ended early")
                if isinstance(error, RoundBroken | RoundClosed):
                    # If this push itself has failed, its own error says more than that of the round.
                    return await self._outcome(push)
                raise
            return await push.outcome.wait()

    async def push_shared(self, header: PushHeader, gradient: Gradient) -> PushResult:
        """Do the same as `push`, for a gradient in the worker's shared memory."""
        known = self.admit(header)
        push = Push(header, gradient, self._clock.wall())
        push.digest.add_shared(gradient, self._state.groups.extents)
        if known is not None:
            check_same(self._state, header, known, push.digest)
            return await self._outcome(known)
        self._gradient_reads.forget(header.worker)
        return await self._announce(push).outcome.wait()

    @contextmanager
    def _calling(self, push: Push) -> Iterator[None]:
        """Count a call that waits for a push. One that waits for others is withdrawn when its last caller goes away."""
        push.callers += 1
        try:
            yield
        finally:
            push.callers -= 1
            if not push.is_wanted and push not in self._due:
                self._abandon(push, "its call ended early")

    async def _outcome(self, known: PushResult | Push) -> PushResult:
        """Return the result of a push to a call that repeats it."""
        while isinstance(known, Push):
            push = known
            try:
                with self._calling(push):
                    known = await push.outcome.wait()
            except RoundBroken:
                if push.successor is None:
                    raise
                known = push.successor
        return replace(known, repeat=True)

    def _announce(self, push: Push) -> Push:
        """Offer an admitted push to the policy; raise the problem of its header or of its options."""
        header = push.header
        check_header(header)
        decide.check_base(self._state, header)
        check_flush(push)
        decide.check_evaluation(self._state, header)
        decide.check_fragment(self._state, header, accumulates=self.committer.settings.accumulates)
        decide.check_staleness(self._state, header)
        if header.updates:
            # The updates take effect with the step or not at all, so they must be compatible with all waiting pushes.
            self.committer.edits([*self.waiting.pushes, push])
        self._under_way[header.worker] = push
        self._offer(push)
        return push

    def _offer(self, push: Push) -> None:
        self.waiting.offer(push)
        if not push.outcome.is_done and (mixed := problem_of_kinds(push, self.waiting)) is not None:
            self._end(push, mixed)
        if push.outcome.is_done:
            return
        if push.is_there:
            self.waiting.arrived(push)
        elif self.waiting.policy.receives_first and not push.begun.is_done:
            push.spool = Spool(push, self._state.groups, self._room, self._offload)
            push.begun.succeed(push.spool)
        self._fold.notify()

    def _supersedes(self, known: PushResult | Push) -> bool:
        """End a push that has not received its whole gradient, because another call has sent it again.

        The first call may hang on a connection that is dead without either side knowing. If the gradient has arrived,
        the push goes on, and both calls get its outcome.
        """
        if not isinstance(known, Push) or known.is_there:
            return False
        self._abandon(known, f"the push of worker {known.header.worker!r} was sent again")
        return True

    def _seal(self, push: Push, receiver: Receiver) -> None:
        """Mark the gradient of a push as complete. The step follows when all gradients of its round are."""
        if push.outcome.is_done:
            push.outcome.get()  # raises the error that ended the push meanwhile
            return
        receiver.seal()
        push.is_there = True
        self.waiting.arrived(push)
        self._due.note_there(push)

    def _abandon(self, push: Push, why: str) -> None:
        """End a push whose gradient did not arrive, or that must not count. The others of its round wait for a new one.

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

    def _note_failure(self) -> None:
        """Answer the pushes that wait once the job has failed: no step of it will release them."""
        if self._fold.failure and self.waiting.pushes:
            try:
                self._fold.check_not_failed()
            except OptdError as error:
                self.refuse_waiting(error)

    def close(self, error: OptdError) -> None:
        """Refuse every push to come with `error`; `fail_all` answers those in flight."""
        self._closed = error

    def fail_all(self, error: OptdError) -> None:
        """Answer every push in flight with `error`."""
        for push in tuple(self._under_way.values()):
            if not self._due.fail(push, error):
                self._end(push, error)

    def exchange(self, policy: Policy, workers: Iterable[str]) -> None:
        """Replace the policy, and offer the waiting pushes to the new one; `workers` are those that take part."""
        for push in self.waiting.exchange(policy, workers):
            self._offer(push)

    def _begin(self, due: Sequence[Push]) -> None:
        self._due.begin(due)

    # The end of a push

    def _end(self, push: Push, error: OptdError) -> None:
        """End a push with an error. If its round has begun but its step has not, that ends the round too."""
        if push.outcome.is_done:
            return  # by now the policy may hold the worker's next push
        if not self._due.end(push, error):
            self._let_go(push, error)
            self.waiting.take_back(push)

    def _let_go(self, push: Push, error: OptdError | None = None) -> None:
        """Forget a push that is no longer in flight, and fail it if there is an error."""
        if self._under_way.get(push.header.worker) is push:
            del self._under_way[push.header.worker]
        self._due.forget(push)
        if error is not None:
            push.fail(copy(error))
