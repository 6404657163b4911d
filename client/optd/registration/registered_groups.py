"""The groups of a registration with arrays and dicts, and the version of the job that they hold."""

import logging
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from optd.exchange.incoming import IncomingWeights
from optd.exchange.outgoing import OutgoingGradients
from optd.options.effective import Effective
from optd.options.mirror import Shown
from optd.params.flat_view import Array, ArraysByGroup
from optd.params.group_arrays import GroupArrays
from optd.params.groups import ParamGroup
from optd.registration.buffers import Buffers, Holder, has_buffers
from optd.registration.existing_job import ExistingJob, check_alone
from optd.registration.group_algorithms import job_algorithm, show_algorithms, warn_of_unreached
from optd.registration.group_dicts import GroupDicts
from optd.registration.rank_policy import resize, resized
from optd.session.lock import OwnedLock
from optd.session.session import Session
from optd_wire.errors import InvalidRequest, JobMismatch, OptdError
from optd_wire.values import JobSpec, JobVersion, Membership, Options, Policy, PushResult, Sync

logger = logging.getLogger("optd")


class RegisteredGroups:
    """The groups of a registration, and the job's version that their arrays hold; see `Registration`."""

    def __init__(
        self,
        session: Session,
        algorithm: str,
        groups: Sequence[ParamGroup],
        dicts: Sequence[MutableMapping[str, Any]],
        *,
        zero_copy: bool,
        writable: bool,
        shown: Shown,
        buffers: Holder,
    ) -> None:
        check_alone(session)
        self.session = session
        self.zero_copy = zero_copy
        self.default = algorithm
        """The algorithm of groups that name none; empty if there is no default."""
        self.algorithm = job_algorithm(algorithm, groups)
        """The job's algorithm: the default, or that of the first group if there is none."""
        self._buffers = Buffers(buffers)
        self._own = GroupArrays(groups, session.batch_bytes, self._buffers.group)
        self._incoming = IncomingWeights(session, self._own, zero_copy=zero_copy, writable=writable)
        self._outgoing = OutgoingGradients(session, self._own)
        self._groups = GroupDicts(session, dicts, shown)
        self._lock = OwnedLock()
        self._base = JobVersion()
        self._has_average = False
        """Whether the arrays hold an average, or may, because a call that would have replaced it failed."""
        self._is_sync = False
        self._is_loading = False
        """Whether a state was loaded and nothing pushed since: weights that are written now belong to it."""
        self._told = 0
        """The revision whose options the last push brought, if it is later than that of `base`."""
        self._existing: ExistingJob | None = None
        self.last: PushResult | None = None
        """The result of the last answered push; see `Optimizer.last`."""
        self.attached = False
        """Whether the job was there before, so that its weights are now in the arrays."""

    def _join(self, defaults: Options, default_policy: Policy | None) -> Membership:
        """Creates the job, or joins the one that is there; its weights are not pulled yet."""
        session = self.session
        warn_of_unreached(session, self.default, defaults, self.groups)
        self._check_takes_buffers()
        spec = JobSpec(
            name=session.job,
            algorithm=self.algorithm,
            defaults=defaults,
            groups=tuple(group.spec() for group in self._own.groups),
            policy=session.policy or (default_policy if session.shared else None),
            options=session.options,
            ephemeral=session.ephemeral,
        )
        membership, created = self._register(spec, default_policy)
        resized_policy = resized(session, membership.job.policy, spec.policy)
        if resized_policy is not None:
            job = replace(membership.job, policy=resize(session, resized_policy))
            membership = replace(membership, job=job)
        self._spec = replace(spec, policy=membership.job.policy)
        if session.policy is not None and session.policy != membership.job.policy:
            logger.warning(
                "job %s: worker %s asks for policy %s, which the job was created with; somebody has changed it to %s",
                session.job,
                session.worker,
                session.policy,
                membership.job.policy,
            )
        self._base = membership.job.version
        self._is_sync = isinstance(membership.job.policy, Sync)
        show_algorithms(self.default, self.groups, self.dicts)
        self._groups.read(membership.job.groups[self._own.first :])
        self.attached = not created or self._base.version > 0
        return membership

    def _register(self, spec: JobSpec, default_policy: Policy | None) -> tuple[Membership, bool]:
        try:
            return self.session.register(spec, self._own.view.source(self._own.arrays))
        except JobMismatch as error:
            if error.values["aspect"] != "policy":
                advice = self._advice_on_buffers()
                if not advice:
                    raise
                raise JobMismatch(**{**error.values, "ours": f"{error.values['ours']}{advice}"}) from None
            if self.session.policy is not None:
                raise
            if resized(self.session, self.session.info().policy, spec.policy) is not None:
                return self._register(replace(spec, policy=None), default_policy)
            ours = f"{default_policy}, as that of all ranks of torch.distributed; pass policy= to name another one"
            raise JobMismatch(**{**error.values, "ours": ours}) from None

    def _check_takes_buffers(self) -> None:
        for name in {*self.algorithms} if self._own.first else ():
            if self.session.algorithm(name).needs_closure:
                problem = f"buffers= is not for {name}, which takes one group of parameters: leave it out"
                raise InvalidRequest(problem=problem)

    def _advice_on_buffers(self) -> str:
        """What to do if the job has buffers and this worker has not, or the other way round; empty if neither."""
        try:
            is_theirs, is_ours = has_buffers(self.session.info().groups), self._own.first > 0
        except OptdError:
            return ""
        if is_theirs and not is_ours:
            return ", without the job's buffers: pass the model that has them as buffers=, as the job's creator did"
        if is_ours and not is_theirs:
            return ", with buffers, which the job lacks: leave buffers= out, or create the job with them"
        return ""

    @property
    def groups(self) -> list[ParamGroup]:
        """The groups of parameters, in the order of the job's."""
        return self._own.of_parameters

    @property
    def algorithms(self) -> list[str]:
        """The algorithm of each group."""
        return [group.algorithm or self.default for group in self.groups]

    @property
    def dicts(self) -> Sequence[MutableMapping[str, Any]]:
        """The option dicts of the groups. May be set to other dicts for the same groups."""
        return self._groups.dicts

    @dicts.setter
    def dicts(self, dicts: Sequence[MutableMapping[str, Any]]) -> None:
        self._groups.dicts = list(dicts)

    @property
    def effective(self) -> Effective:
        """What schedules make of options, as the dicts show it."""
        return self._groups.effective

    @property
    def lock(self) -> OwnedLock:
        """Held by every call; a caller holds it for several calls that belong together."""
        return self._lock

    @property
    def weights(self) -> ArraysByGroup:
        """The weights by group and place: the groups' arrays, or what lies in shared memory, until the next call."""
        return self._incoming.weights

    @property
    def in_arrays(self) -> bool:
        """Whether the weights are in the groups' arrays, and not in shared memory."""
        return self._incoming.in_arrays

    def shared_gradients(self) -> list[list[Array]] | None:
        """See `OutgoingGradients.shared_gradients`."""
        return self._outgoing.shared_gradients()

    @property
    def has_average(self) -> bool:
        """Whether the arrays hold an average of the weights, or may."""
        return self._has_average

    @property
    def base(self) -> JobVersion:
        """The version and revision of the weights that the arrays hold."""
        return self._base

    def _use(self) -> None:
        """Goes on with the job's weights for good, and tells what differs from what was asked for."""
        existing, self._existing = self._existing, None
        if existing is not None:
            existing.tell()
