"""How a session joins its job again: after a push whose fate is unknown, after its lease ran out, after a rollback."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from optd.session.join import Rejoined, join
from optd.session.member_session import MemberSession
from optd.transport.numbers import Source
from optd_wire.errors import (
    JobReplaced,
    LeaseExpired,
    NotFound,
    PushWithdrawn,
    StaleEpoch,
    UnknownJob,
    UnknownWorker,
)
from optd_wire.values import GroupInfo, GroupSpec, JobVersion, Membership

T = TypeVar("T")
logger = logging.getLogger("optd")


class PushFoundApplied(Exception):
    """A push whose answer is lost for good has been applied; the job was at `version` when that was learnt."""

    def __init__(self, version: JobVersion) -> None:
        super().__init__(version)
        self.version = version


class RejoiningSession(MemberSession):
    """A session that joins again by itself where nothing is lost by it; see `Session`."""

    def find_out(self) -> None:
        """Learns the fate of the last push, if it is unknown, and settles it. Raises what prevents that.

        Chooses a lane, if the server was away when that was to be done.
        """
        if self._in_doubt is None and self._has_chosen:
            return
        with self._lock:
            self._check_usable()
            self._resolved_epoch()
            if not self._has_chosen:
                self._through_expiry(lambda _: self._choose_lane_again())

    def _resolved_epoch(self) -> int:
        """The epoch to push under: a new one if the fate of the last push is unknown.

        Joining again fences the old epoch. The answer tells whether the push in doubt was applied; if not, it never
        will be. So the next push can neither be mistaken for it nor be applied in addition to it.
        """
        membership = self._membership
        if membership is None:
            raise UnknownWorker(worker=self.worker, job=self.job)
        if self._in_doubt is None:
            return membership.epoch
        # Joining would succeed also after the server went back, and hide that the worker's weights no longer count.
        with suppress(NotFound):
            self._ask(self._check_part)
        joined, _ = self._join_again(membership)
        return joined.epoch

    def add_group(self, spec: GroupSpec, weights: Source) -> GroupInfo:
        """Adds a group to the job; does nothing if another worker has added it already."""
        with self._lock:
            info = self._ask(lambda left: self._transport.add_group(self.job, spec, weights, left))
            if self._membership is not None:
                job = self._ask(lambda left: self._transport.get_job(self.job, left))
                self._membership = replace(self._membership, job=job)
                if self.shared_memory is not None:
                    self._through_expiry(lambda _: self._choose_lane_again())
            return info

    def _choose_lane_again(self) -> None:
        if self._membership is not None:
            self._choose_lane(self._membership)

    def _through_expiry(self, attempt: Callable[[float], T], *, is_push: bool = False) -> T:
        """As `_ask`; if the worker's lease has run out, joins again and asks again.

        With `is_push` it asks only if the push under way was not applied; else it raises `PushFoundApplied`. After the
        first expiry it goes on for up to `timeout` seconds.
        """
        until: float | None = None
        while True:
            try:
                return self._ask(attempt)
            except (LeaseExpired, PushWithdrawn) as error:
                now = time.monotonic()
                until = now + self.timeout if until is None else until
                if now > until or not self._has_expired(error):
                    raise
            self._resume(is_push=is_push)

    def _has_expired(self, error: LeaseExpired | PushWithdrawn) -> bool:
        """Whether the lease has run out, which also withdraws a push that waits for its round."""
        if isinstance(error, LeaseExpired):
            return True
        try:
            self._ask(self._renew_once)
        except LeaseExpired:
            return True
        except StaleEpoch:
            return False
        return False

    def _renew_once(self, left: float) -> None:
        if self._membership is not None:
            self._transport.renew_lease(self.job, self.worker, self._membership.epoch, left)

    def _resume(self, *, is_push: bool) -> None:
        """Joins again after the lease ran out; nothing that the server has acknowledged is lost."""
        membership = self._membership
        if membership is None:
            raise UnknownWorker(worker=self.worker, job=self.job)
        joined, applied = self._join_again(membership, is_under_way=is_push)
        what = ""
        if is_push:
            what = "; its push had been applied" if applied else "; it sends its push again"
        logger.warning(
            "job %s at %s: the lease of worker %s ran out (%g s without a sign of its process), so it has joined again "
            "under epoch %d and goes on%s",
            self.job,
            self.address,
            self.worker,
            membership.lease_ms / 1000,
            joined.epoch,
            what,
        )
        if is_push and applied:
            raise PushFoundApplied(joined.job.version)

    def _check_part(self, left: float) -> None:
        """Raises `RolledBack`, or that the job or this worker is unknown; not if just the lease has run out."""
        with suppress(StaleEpoch):
            self._renew_once(left)

    def _join_again(self, membership: Membership, *, is_under_way: bool = False) -> tuple[Membership, bool]:
        """Joins under a new epoch and settles the push in doubt, if there is one; returns whether that was applied.

        If that is a push `is_under_way`, which will be sent again, it stays in doubt unless it was applied. Raises
        `StaleEpoch` if another session has taken the worker's name.
        """
        sequence, settle = self._sequence + 1, self._in_doubt
        # The server may reuse the memory of weights in place once the old epoch is fenced.
        self._lane.keep()
        try:
            joined = join(
                self._transport,
                self.job,
                self.worker,
                None,
                self.timeout,
                session_id=self._session_id,
                job_id=membership.job.id,
                resumes_epoch=membership.epoch,
            )
        except (UnknownJob, JobReplaced) as error:
            raise self._explained(error) from None
        applied = False
        if settle is not None:
            applied = (joined.previous_epoch, joined.previous_sequence) == (membership.epoch, sequence)
            if applied:
                self._acknowledged.note(membership.epoch, sequence)
            if applied or not is_under_way:
                settle(applied, [group.options for group in joined.job.groups])
                settle = None
        # In one statement: an interrupt in between would leave a fenced epoch that is not known to be fenced.
        self._membership, self._departure.epoch, self._sequence, self._in_doubt = joined, joined.epoch, 0, settle
        self._enter(joined)
        return joined, applied

    def rejoin(self, why: str) -> Rejoined:
        """Joins again after the server went back to an older version of the job (`RolledBack`), and warns of it.

        `why` is that of the error, for the warning. Weights, gradients and options of before count no longer: the
        caller pulls.
        """
        with self._lock:
            self._check_usable()
            if self._membership is None:
                raise UnknownWorker(worker=self.worker, job=self.job)
            joined, applied = self._join_again(self._membership)
            lost = self._acknowledged.lost_after(joined.previous_epoch, joined.previous_sequence)
            self._version = joined.job.version
            logger.warning(
                "job %s at %s: %s, and has lost %d acknowledged pushes of worker %s, which goes on from there",
                self.job,
                self.address,
                why,
                lost,
                self.worker,
            )
            return Rejoined(joined, lost, applied)

    def _forget_pushes(self) -> None:
        settle, self._in_doubt = self._in_doubt, None
        self._acknowledged.forget()
        if settle is not None:
            settle(False, ())
