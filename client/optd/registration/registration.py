"""What both optimizer faces (numpy and torch) share: arrays tied to a job's groups through a session."""

import logging
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

from optd.exchange.incoming import IncomingWeights
from optd.exchange.outgoing import OutgoingGradients
from optd.exchange.row_gradients import GradientsByGroup
from optd.options.effective import Effective
from optd.options.mirror import OptionMirror, Shown, as_numpy
from optd.params.flat_view import Array, ArraysByGroup, OptionalArraysByGroup
from optd.params.group_arrays import GroupArrays
from optd.params.groups import ParamGroup
from optd.registration.existing_job import (
    ExistingJob,
    check_alone,
    differing_job_options,
    differing_options,
    replaced,
    same_states,
    same_weights,
)
from optd.session.lock import OwnedLock
from optd.session.push_settings import PLAIN_PUSH, PushSettings
from optd.session.session import Session, Settle
from optd.state.all_parameters import ParameterState, StateWriter
from optd.state.server_state import ServerState
from optd.transport.numbers import Source
from optd.transport.requests import Known, Names
from optd_wire.errors import DuplicateName, EmptyAverage, JobMismatch, NotFound, OptdError, UnknownAverage
from optd_wire.values import (
    WEIGHTS,
    EffectiveOptions,
    GroupOptions,
    GroupState,
    GroupUpdate,
    JobSpec,
    JobVersion,
    Membership,
    Options,
    Policy,
    PushResult,
    Sync,
    WriteStateHeader,
)

logger = logging.getLogger("optd")


def belongs_to_a_session(optimizer: object) -> TypeError:
    """The error of an optimizer that is to be pickled or copied."""
    return TypeError(
        f"{type(optimizer).__name__} can be neither pickled nor copied: it belongs to a session with a server; "
        "save state_dict() instead, or copy that. In another process, construct one of the same job under another "
        "worker's name. For a copy that trains apart, construct one of another job and load the state_dict() into it"
    )


class Registration:
    """Groups of arrays that hold a job's weights, and the groups' option dicts beside them.

    Arrays are written in place with what is pulled; with `zero_copy`, where the session shares memory with the server,
    `weights` are then what lies there, and the arrays stay as they are; `writable` says that the caller lets others
    write to them, which is undone before they are read anew; `shown` makes of an option what the dicts have. One call
    at a time: others wait.
    """

    def __init__(
        self,
        session: Session,
        algorithm: str,
        defaults: Options,
        groups: Sequence[ParamGroup],
        dicts: Sequence[MutableMapping[str, Any]],
        *,
        zero_copy: bool = False,
        writable: bool = False,
        default_policy: Policy | None = None,
        shown: Shown = as_numpy,
    ) -> None:
        check_alone(session)
        self.session = session
        self.zero_copy = zero_copy
        self.algorithm = algorithm
        self._own = GroupArrays(groups, session.batch_bytes)
        self._incoming = IncomingWeights(session, self._own, zero_copy=zero_copy, writable=writable)
        self._outgoing = OutgoingGradients(session, self._own)
        self._dicts = list(dicts)
        self._defaults = defaults
        self._mirror = OptionMirror(shown)
        self.effective = Effective()
        self._lock = OwnedLock()
        self.state = ServerState(session, self._own, self._lock, algorithm, self._write_state)
        """The optimizer state that the server holds."""
        self._has_average = False
        """Whether the arrays hold an average, or did when a call began that nobody knows the end of."""
        spec = JobSpec(
            name=session.job,
            algorithm=algorithm,
            defaults=defaults,
            groups=tuple(group.spec() for group in groups),
            policy=session.policy or (default_policy if session.shared else None),
            options=session.options,
            ephemeral=session.ephemeral,
        )
        membership, created = self._register(spec, default_policy)
        self._base = membership.job.version
        self._is_sync = isinstance(membership.job.policy, Sync)
        self._is_loading = False
        """Whether a state was loaded, and nothing pushed since: weights that are written now belong to it."""
        self.last: PushResult | None = None
        """What became of the last push that was answered; see `Optimizer.last`."""
        self._told = 0
        """The revision whose options the last push has told, where it is past that of `base`."""
        for info, group in zip(membership.job.groups, self._dicts, strict=False):
            self._mirror.add(info.options, group)
        self.attached = not created or self._base.version > 0
        """Whether the job was there before, so that its weights are now in the arrays."""
        self._existing: ExistingJob | None = None
        if self.attached:
            self._attach(membership)
        else:
            self._ask_what_is_effective()

    def _register(self, spec: JobSpec, default_policy: Policy | None) -> tuple[Membership, bool]:
        try:
            return self.session.register(spec, self._own.view.source(self._own.arrays))
        except JobMismatch as error:
            if error.values["aspect"] != "policy" or self.session.policy is not None:
                raise
            ours = f"{default_policy}, as that of all ranks of torch.distributed; pass policy= to name another one"
            raise JobMismatch(**{**error.values, "ours": ours}) from None

    @property
    def groups(self) -> list[ParamGroup]:
        """The groups, in the order of the job's."""
        return self._own.groups

    @property
    def dicts(self) -> Sequence[MutableMapping[str, Any]]:
        """The groups' option dicts, which may be replaced by others for the same groups."""
        return self._dicts

    @dicts.setter
    def dicts(self, dicts: Sequence[MutableMapping[str, Any]]) -> None:
        self._dicts = list(dicts)

    @property
    def lock(self) -> OwnedLock:
        """Held by each call; by a caller for several that belong together."""
        return self._lock

    @property
    def weights(self) -> Sequence[Sequence[Array]]:
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

    def _attach(self, membership: Membership) -> None:
        """Takes the job's weights, and keeps what was here until the job is used."""
        own = [[array.copy() for array in row] for row in self._own.arrays]
        self.pull()
        existing = ExistingJob(
            differing=[
                *differing_options(self.session, self._defaults, self.groups, membership.job.groups),
                *differing_job_options(self.session, membership.job.options.options),
            ]
        )
        if not same_weights(own, self.weights):
            existing.own, existing.warning = own, replaced(self.session, membership)
        self._existing = existing

    def _use(self) -> None:
        """Goes on with the job's weights for good, and says what differs from what was asked for."""
        existing, self._existing = self._existing, None
        if existing is not None:
            existing.tell()

    def weights_before(self, states: Sequence[Sequence[ParameterState]]) -> list[list[Array]] | None:
        """The weights that were here before the job's came, where they are to go with `states` that are loaded.

        None where they were the same, where the job has been used since, and where it has these very states: then its
        own weights go with them. (accelerate loads what it has just read, to put it on a device.)
        """
        existing = self._existing
        if existing is None or existing.own is None:
            return None
        existing.is_confirmed = same_states(self.state.read()[0], states)
        return None if existing.is_confirmed else existing.own

    def add_group(self, group: ParamGroup, options: MutableMapping[str, Any]) -> None:
        """Adds a group to the job, with its arrays as weights, or finds it there; then pulls.

        Raises `JobMismatch` where these lack a group that was added before it.
        """
        with self._lock:
            if group.name in [known.name for known in self.groups]:
                raise DuplicateName(kind="group", name=group.name, job=self.session.job)
            info = self.session.add_group(group.spec(), self._own.source_of(group))
            if info.index != len(self.groups):
                # Others have added groups that these lack: everything is addressed by place.
                aspect = f"group {group.name!r} at place"
                raise JobMismatch(job=self.session.job, aspect=aspect, theirs=info.index, ours=len(self.groups))
            self._own.append(group)
            own = [array.copy() for array in group.arrays]
            try:
                pulled = self.session.pull_into(self._incoming.write, None, in_place=self._incoming.in_place)
            except BaseException:
                # The job keeps the group; adding it again finds it there.
                self._own.pop()
                raise
            if self._existing is not None and self._existing.own is not None:
                self._existing.own.append(own)
            self._dicts.append(options)
            self._mirror.add(info.options, options)
            self._mirror.absorb(pulled.options, self._dicts)
            self._base = pulled.version
            self._ask_what_is_effective()

    def _ask_what_is_effective(self) -> None:
        """Shows what schedules make of options, where there are some, and the last reply does not tell.

        The call before it has succeeded, so a failure here is logged; the next reply brings the values.
        """
        self.effective.read(self._mirror.known)
        if not self.effective.any:
            return
        try:
            told = [EffectiveOptions(each.options.group, each.effective) for each in self.session.groups()]
        except OptdError as error:
            logger.warning(
                "job %s: param_groups will show what schedules make of options after the next step, as the server does "
                "not tell now: %s",
                self.session.job,
                error,
            )
        else:
            self.effective.show(told, self._dicts)

    def _take(self, pushed: PushResult) -> None:
        """Takes over what the reply of a push tells of options."""
        self.last, self._is_loading = pushed, False
        self._mirror.absorb(pushed.options, self._dicts)
        if pushed.options:
            self.effective.read(self._mirror.known)
        if self.effective.any:
            self.effective.show(pushed.effective, self._dicts)

    def _changes(self) -> tuple[GroupUpdate, ...]:
        """What has been changed in the dicts."""
        updates = self._mirror.changes(self._dicts)
        if updates:
            self.effective.check_changes(updates)
        return updates

    def step(
        self,
        gradients: GradientsByGroup,
        encoding: str | None = None,
        settings: PushSettings = PLAIN_PUSH,
        *,
        has_weights: bool = True,
    ) -> PushResult:
        """Pushes gradients and puts the new weights into the arrays.

        Those that have not changed since `base` may be left out, unless the arrays may hold others (`has_weights`).
        """
        incoming = self._incoming
        with self._lock:
            self._use()
            self._find_out()
            updates = self._changes()
            wire = self._outgoing.wire(encoding)
            source, settle = self._outgoing.source(
                gradients, wire, settings, has_weights=has_weights and incoming.in_arrays and not self._has_average
            )
            pushed, pulled = self.session.step(
                source,
                updates,
                self._base,
                self._settling(settle, updates),
                incoming.write,
                incoming.in_place,
                wire.weights,
                settings,
            )
            self._take(pushed)
            # The options in force were told as of the step; what has changed since comes with the next reply.
            self._base = JobVersion(pulled.version.version, pulled.version.durable_version, pushed.version.revision)
            self._has_average = False
            return pushed

    def push(
        self, gradients: GradientsByGroup, encoding: str | None = None, settings: PushSettings = PLAIN_PUSH
    ) -> PushResult:
        """Pushes gradients; the arrays stay as they are."""
        with self._lock:
            self._use()
            self._find_out()
            updates = self._changes()
            source, settle = self._outgoing.source(gradients, self._outgoing.wire(encoding), settings)
            base = replace(self._base, revision=max(self._base.revision, self._told))
            pushed = self.session.push(source, updates, base, self._settling(settle, updates), settings)
            self._take(pushed)
            # The options of that revision are known; weights may have been written since those that are here.
            self._told = pushed.version.revision
            self._base = replace(self._base, durable_version=pushed.version.durable_version)
            return pushed

    def flush(self, settings: PushSettings) -> PushResult:
        """Makes the step of what the job has added up, and puts the new weights into the arrays as `step` does."""
        return self.step([[None] * len(group.arrays) for group in self.groups], settings=replace(settings, flush=True))

    @property
    def pending(self) -> int:
        """How many pushes, or rounds of them, were added up without a step, as of the last answer."""
        return 0 if self.last is None else self.last.accumulated

    def _find_out(self) -> None:
        """Finds out what became of the last push, where nobody knows: the changes that went with it may be in force.

        The session may end on another lane, so that nothing is to be encoded before.
        """
        if self.session.in_doubt:
            self.session.find_out()

    def _settling(self, settle: Callable[[bool], None], updates: tuple[GroupUpdate, ...]) -> Settle:
        def settled(applied: bool, options: Sequence[GroupOptions]) -> None:
            settle(applied)
            if applied:
                self._mirror.absorb_own(updates, options, self._dicts)
                if options:
                    self.effective.read(self._mirror.known)

        return settled

    def pull(
        self, *, only_if_newer: bool = False, groups: Names = (), parameters: Names = (), weights: str = ""
    ) -> bool:
        """Puts the current weights into the arrays and the current options into the dicts.

        With `only_if_newer` nothing is sent, and False returned, where the arrays hold them. With some `groups` or
        `parameters`, or an average as `weights`, only these are read, and the version that gradients are computed on
        stays what it was.
        """
        with self._lock:
            self._use()
            only_if_newer = only_if_newer and not self._has_average
            known = Known(self._base.version, self._base.revision) if only_if_newer else None
            some = bool(groups or parameters or weights)
            had_average, self._has_average = self._has_average, self._has_average or bool(weights)
            try:
                pulled = self.session.pull_into(
                    self._incoming.write,
                    known,
                    in_place=None if some else self._incoming.in_place,
                    groups=groups,
                    parameters=parameters,
                    weights_of=weights,
                )
            except (EmptyAverage, UnknownAverage, NotFound):
                self._has_average = had_average  # nothing has come
                raise
            if pulled.not_modified:
                return False
            self._mirror.absorb(pulled.options, self._dicts)
            if not some:
                self._base, self._has_average = pulled.version, False
            self._ask_what_is_effective()
            return True

    # State

    @cached_property
    def needs_closure(self) -> bool:
        """Whether a step of the algorithm asks for loss and gradients several times."""
        return self.session.algorithm(self.algorithm).needs_closure

    def write_state(
        self, states: Sequence[Sequence[ParameterState]], *, weights: OptionalArraysByGroup | None = None
    ) -> None:
        """Replaces the state of all parameters (as `state.read` gives it) and options, at once.

        Options are those of the dicts, whether they have been changed here or by somebody else; `weights`, by group and
        place, go with them, where they are not None.
        """
        with self._lock:
            self._find_out()
            writer = StateWriter([group.names for group in self.groups], states)
            self._write(writer.groups, self._mirror.everything(self._dicts), [writer.frames], weights)
            self._is_loading = True
            if self._existing is not None and not self._existing.is_confirmed:
                self._existing = None  # a checkpoint says what weights, state and options are to be

    def put_back(self, weights: ArraysByGroup) -> None:
        """Puts weights into the arrays that the job has got from here."""
        self._incoming.put(weights)

    def write_weights(self) -> None:
        """Replaces the job's weights by what the arrays hold now."""
        with self._lock:
            self._find_out()
            self._write((), (), [], self._own.arrays)
            self._existing = None

    def write_given(self, rows: OptionalArraysByGroup) -> None:
        """Replaces the job's weights by others, by group and place, where they are not None; then pulls."""
        with self._lock:
            self._existing = None
            self._find_out()
            self._write((), (), [self._own.view.source(rows, WEIGHTS)], None)
            self.pull()

    def write_changes(self, places: Collection[tuple[int, int]]) -> None:
        """Replaces the weights of parameters, by group and place, by what their arrays hold.

        Raises `OtherWorkers` or `WeightsMovedOn` where that would undo steps that are not in the arrays.
        """
        with self._lock:
            self._find_out()
            session = self.session
            rows = [
                [array if (index, place) in places else None for place, array in enumerate(row)]
                for index, row in enumerate(self._own.arrays)
            ]
            header = WriteStateHeader(
                session.job,
                session.worker,
                session.epoch,
                (),
                if_alone_at=self._base,
                # In a sync job all workers make the same change, as they do everything.
                beside_others=self._is_sync or self._is_loading,
            )
            options, version = session.write_state(header, self._own.view.source(rows, WEIGHTS))
            self._mirror.absorb(options, self._dicts)
            self._base = version

    def _write_state(self, groups: tuple[GroupState, ...], numbers: Source) -> JobVersion:
        """Replaces state; weights and options stay."""
        self._find_out()
        return self._write(groups, (), [numbers], None)

    def _write(
        self,
        groups: tuple[GroupState, ...],
        updates: tuple[GroupUpdate, ...],
        numbers: Sequence[Source],
        weights: OptionalArraysByGroup | None,
    ) -> JobVersion:
        session = self.session
        if weights is not None:
            numbers = [*numbers, self._own.view.source(weights, WEIGHTS)]
        header = WriteStateHeader(session.job, session.worker, session.epoch, groups, updates=updates)
        options, version = session.write_state(header, lambda: chain.from_iterable(source() for source in numbers))
        self._mirror.absorb(options, self._dicts)
        if weights is not None and all(array is not None for row in weights for array in row):
            self._base, self._has_average = version, False
        self._ask_what_is_effective()
        return version
