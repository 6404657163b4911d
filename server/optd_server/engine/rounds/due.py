"""The rounds of a job that are due: from the policy's decision to the answer of their pushes."""

from collections.abc import Callable, Sequence

from optd_server.engine.fold import Fold
from optd_server.engine.membership.leases import Leases
from optd_server.engine.offload import Offload
from optd_server.engine.planning import JobMemory
from optd_server.engine.rounds.committer import Committer, no_memory
from optd_server.engine.rounds.lone import AnyRound, LoneRound
from optd_server.engine.rounds.push import Push
from optd_server.engine.rounds.requests import Requests
from optd_server.engine.rounds.round import Refused, Round
from optd_server.engine.rounds.waiting import Waiting
from optd_server.engine.writer import Writer
from optd_server.optim.job_options import ZERO
from optd_server.store.gradients import Slot, Slots
from optd_wire.errors import OptdError, PushWithdrawn, RoundBroken
from optd_wire.values import PushResult


class DueRounds:
    """The rounds of one job whose steps are to be taken, one after the other. Lives on one event loop.

    `offer` lets a push wait for another round. `let_go` is called with each push that ends here, and with its error if
    it fails.
    """

    def __init__(
        self,
        fold: Fold,
        leases: Leases,
        waiting: Waiting,
        committer: Committer,
        writer: Writer,
        offload: Offload,
        memory: JobMemory,
        slots: Slots,
        offer: Callable[[Push], None],
        let_go: Callable[[Push, OptdError | None], None],
    ) -> None:
        self._fold = fold
        self._state = fold.state
        self._leases = leases
        self._waiting = waiting
        self._committer = committer
        self._writer = writer
        self._offload = offload
        self._memory = memory
        self._slots = slots
        self._offer = offer
        self._let_go = let_go
        self._of: dict[Push, AnyRound] = {}
        """By push, its round, which has begun."""
        self._requests = Requests(slots)

    def __contains__(self, push: Push) -> bool:
        return push in self._of

    def begin(self, due: Sequence[Push]) -> None:
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
            self._fold.keeps_events
            or self._state.search.is_under_way
            or self._committer.settings.may_write(push.header)
        )

    def _start(self, due: Sequence[Push], slot: Slot | None) -> None:
        if any([push.outcome.is_done for push in due]):  # noqa: C419 - a list is faster here
            # A push was withdrawn while the round waited for a slot: the others wait for another round.
            left = [push for push in due if not push.outcome.is_done]
            if slot is not None:
                self._slots.give_back(slot)
            for push in left:
                self._offer(push)
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
        settings = self._committer.settings.now
        # A line search may try a step that overflows. It must see that and turn back, so the push is not refused.
        nonfinite = ZERO if state.search.is_under_way else settings.nonfinite
        what = (state.groups.extents, self._offload, nonfinite, self._memory.check_rows, settings.reduction)
        round_: AnyRound
        if due[0].shared is None and due[0].spool is None and slot is not None:
            round_ = LoneRound(due[0], slot, state.groups.names, *what)
            due[0].begun.succeed(round_)
        else:
            round_ = Round(due, slot, *what)
        for push in due:
            self._of[push] = round_
        self._step_if_complete(round_)

    def note_there(self, push: Push) -> None:
        """Take the step of a push's round if its gradient was the last one that was missing."""
        if push in self._of:
            self._step_if_complete(self._of[push])

    def _step_if_complete(self, round_: AnyRound) -> None:
        if round_.complete:
            self._writer.post(lambda: self._take(round_))

    def end(self, push: Push, error: OptdError) -> bool:
        """End a push with an error, and its round, unless the step has begun. Return False if it has no round."""
        round_ = self._of.get(push)
        if round_ is None:
            return False
        if not round_.step_has_begun:
            self._break(round_, push, error)
        return True

    def fail(self, push: Push, error: OptdError) -> bool:
        """Answer all pushes of a push's round with an error. Return False if it has no round."""
        round_ = self._of.get(push)
        if round_ is None:
            return False
        self._break_all(round_, error)
        return True

    def forget(self, push: Push) -> None:
        """Forget a push that has been answered."""
        self._of.pop(push, None)
        self._requests.forget(push)

    def _break(self, round_: AnyRound, culprit: Push, error: OptdError) -> None:
        """End a round because one of its pushes has failed. The others, which are there, wait for a new one."""
        self._let_go(culprit, error)
        self._offer_again(round_)

    def _offer_again(self, round_: AnyRound) -> None:
        """End a round, and let those of its pushes that have not failed wait for a new one."""
        self._release(round_)
        for push in round_.pushes:
            if push.outcome.is_done:
                continue
            del self._of[push]
            if not push.is_wanted:
                self._let_go(push, RoundBroken(job=self._state.name, why="its call ended early"))
            elif (fenced := self._fenced(push)) is not None:
                self._let_go(push, fenced)
            else:
                self._offer(push)

    def _break_all(self, round_: AnyRound, error: OptdError) -> None:
        """End a round and answer all of its pushes with `error`."""
        for push in round_.pushes:
            self._let_go(push, error)
        self._release(round_)

    def _release(self, round_: AnyRound) -> None:
        slot = round_.slot
        round_.break_off(lambda: None if slot is None else self._slots.give_back(slot))

    # An action of the writer

    async def _take(self, round_: AnyRound) -> None:
        """Take the step of a complete round, and answer its pushes."""
        first = round_.pushes[0]
        if self._of.get(first) is not round_:
            return  # the round was ended while it waited for the writer
        if self._waiting.has_late(round_.pushes):
            self._offer_again(round_)  # the policy refuses what is late
            return
        try:
            self._check_not_fenced(round_)
            replies = await self._committer.commit(round_, lambda: self._of.get(first) is round_)
        except Refused as refusal:
            self._break(round_, refusal.push, refusal.error)
        except OptdError as error:
            self._break_all(round_, error)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it ends the steps of this job, and is logged
            self._break_all(round_, self._fold.fail(problem))
        else:
            if replies is not None:
                for push, reply in zip(round_.pushes, replies, strict=True):
                    self._answer(push, reply)
                self._waiting.applied(round_.pushes, replies)

    def _check_not_fenced(self, round_: AnyRound) -> None:
        self._fold.check_not_failed()
        for push in round_.pushes:
            if (fenced := self._fenced(push)) is not None:
                raise Refused(push, fenced)

    def _fenced(self, push: Push) -> PushWithdrawn | None:
        """Return the error of a push whose worker takes part no more; None if it does."""
        header = push.header
        member = self._state.members.find(header.worker)
        if member is not None and member.epoch == header.epoch and self._leases.holds(header.worker):
            return None
        return PushWithdrawn(worker=header.worker, sequence=header.sequence, why="its worker has been fenced")

    def _answer(self, push: Push, reply: PushResult) -> None:
        """Answer the callers of a push."""
        self._let_go(push, None)
        push.outcome.succeed(reply)
        push.release()
