"""What both optimizer faces (numpy and torch) share: arrays tied to a job's groups through a session."""

from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

from optd.exchange.row_gradients import GradientsByGroup
from optd.options.mirror import Shown, as_numpy
from optd.params.flat_view import Array, ArraysByGroup, OptionalArraysByGroup
from optd.params.groups import ParamGroup
from optd.registration.buffers import NO_BUFFERS, Holder
from optd.registration.existing_job import (
    ExistingJob,
    same_states,
)
from optd.registration.group_algorithms import check_named, show_algorithms
from optd.registration.recovery import RecoveringGroups, recovers
from optd.session.member_session import Settle
from optd.session.push_settings import PLAIN_PUSH, PushSettings
from optd.session.session import Session
from optd.state.all_parameters import ParameterState, StateWriter
from optd.state.server_state import ServerState
from optd.transport.numbers import Source
from optd.transport.requests import Known, Names, names_of
from optd_wire.errors import (
    DuplicateName,
    EmptyAverage,
    JobLost,
    JobMismatch,
    NotFound,
    RolledBack,
    UnknownAverage,
    WeightsMovedOn,
)
from optd_wire.values import (
    WEIGHTS,
    GroupOptions,
    GroupState,
    GroupUpdate,
    JobVersion,
    Membership,
    Options,
    Policy,
    PushResult,
    WriteStateHeader,
)


class Registration(RecoveringGroups):
    """Groups of arrays that hold a job's weights, and the groups' option dicts beside them.

    `algorithm` is that of groups that name none, and may be empty if each group names one; `defaults` are its options,
    and options that every group has, whatever its algorithm.

    Pulled weights are written to the arrays in place. With `zero_copy`, if the session shares memory with the server,
    `weights` lie in that memory instead, and the arrays stay as they are. `writable` says that the caller lets others
    write to these; that is undone before new weights are read. `shown` turns an option's value into what the dicts
    have. `buffers` are pushed and pulled along with the groups; nothing that the methods here take or return includes
    them. One call at a time: other threads wait.
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
        buffers: Holder = NO_BUFFERS,
    ) -> None:
        super().__init__(
            session, algorithm, groups, dicts, zero_copy=zero_copy, writable=writable, shown=shown, buffers=buffers
        )
        self.state = ServerState(session, self._own, self._lock, self.algorithm, self._read_state, self._write_state)
        """The optimizer state that the server holds."""
        membership = self._join(defaults, default_policy)
        if self.attached:
            self._existing = self._attach(membership, defaults)
        else:
            self._groups.ask_effective()

    def _attach(self, membership: Membership, defaults: Options) -> ExistingJob:
        """Takes the job's weights over; keeps the worker's own until the job is used."""
        own = [[array.copy() for array in row] for row in self._own.arrays]
        self.pull()
        self._buffers.note_attached(own[: self._own.first])
        now, groups = self._incoming.all_weights, self._own.groups
        return ExistingJob.found(self.session, membership, self.algorithm, defaults, groups, own, now)

    def weights_before(self, states: Sequence[Sequence[ParameterState]]) -> list[list[Array]] | None:
        """The weights that the arrays held before the job's, if they belong to the `states` that are being loaded.

        None if they were equal, if the job has been used since, or if the job has these very states: then its own
        weights belong to them. (accelerate loads the state that it has just read, to move it to a device.)
        """
        existing = self._existing
        if existing is None or existing.own is None:
            return None
        existing.is_confirmed = same_states(self.state.read()[0], states)
        return None if existing.is_confirmed else existing.own[self._own.first :]

    @recovers
    def add_group(self, group: ParamGroup, options: MutableMapping[str, Any]) -> None:
        """Adds a group to the job with its arrays as weights, or finds it there; then pulls.

        Raises `JobMismatch` if another worker has added a group that is missing here.
        """
        with self._lock:
            check_named(self.default, group.algorithm, group.name)
            if group.name in [known.name for known in self.groups]:
                raise DuplicateName(kind="group", name=group.name, job=self.session.job)
            info = self.session.add_group(group.spec(), self._own.source_of(group))
            if info.index != len(self._own):
                # Groups are addressed by place, so none may be missing here.
                aspect = f"group {group.name!r} at place"
                raise JobMismatch(job=self.session.job, aspect=aspect, theirs=info.index, ours=len(self._own))
            unsent = self._buffers.differing()
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
            show_algorithms(self.default, self.groups, [*self.dicts, options])
            self._groups.append(info.options, options)
            self._groups.absorb(pulled.options)
            self._base = pulled.version
            self._take_buffers(but=unsent)
            self._groups.ask_effective()

    def step(
        self,
        gradients: GradientsByGroup,
        encoding: str | None = None,
        settings: PushSettings = PLAIN_PUSH,
        *,
        has_weights: bool = True,
    ) -> PushResult:
        """Pushes gradients and puts the new weights into the arrays.

        The server may leave out weights that have not changed since `base`, if the arrays hold those (`has_weights`).
        """
        with self._lock:
            self._use()
            return self._pushed(
                lambda: self._step(gradients, encoding, settings, has_weights), pull=self.pull, is_flush=settings.flush
            )

    def _step(
        self, gradients: GradientsByGroup, encoding: str | None, settings: PushSettings, has_weights: bool
    ) -> PushResult:
        incoming = self._incoming
        self._find_out()
        updates = self._groups.changes()
        wire = self._outgoing.wire(encoding)
        has_weights = has_weights and incoming.in_arrays and not self._has_average
        sent = self._with_values(gradients, settings)
        source, settle = self._outgoing.source(sent, wire, settings, has_weights=has_weights)
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
        self.last, self._is_loading = pushed, False
        self._groups.absorb_pushed(pushed)
        # The reply has the options as of the step; what has changed since comes with the next reply.
        self._base = JobVersion(pulled.version.version, pulled.version.durable_version, pushed.version.revision)
        self._has_average = self._is_behind = False
        self._take_buffers()
        return pushed

    def _with_values(self, gradients: GradientsByGroup, settings: PushSettings) -> GradientsByGroup:
        """The values of buffers that have changed, and gradients; a flush brings neither."""
        return [*(self._buffers.nothing() if settings.flush else self._buffers.changed()), *gradients]

    def _take_buffers(self, but: Collection[int] = ()) -> None:
        """Puts the values that have just been read into the buffers."""
        self._buffers.take(self._incoming.all_weights[: self._own.first], but)

    def push(
        self, gradients: GradientsByGroup, encoding: str | None = None, settings: PushSettings = PLAIN_PUSH
    ) -> PushResult:
        """Pushes gradients; the arrays stay as they are. After an `UndonePush` the caller pulls."""
        with self._lock:
            self._use()
            return self._pushed(lambda: self._push(gradients, encoding, settings), pull=None, is_flush=False)

    def _push(self, gradients: GradientsByGroup, encoding: str | None, settings: PushSettings) -> PushResult:
        self._find_out()
        updates = self._groups.changes()
        wire, sent = self._outgoing.wire(encoding), self._with_values(gradients, settings)
        source, settle = self._outgoing.source(sent, wire, settings)
        base = replace(self._base, revision=max(self._base.revision, self._told))
        pushed = self.session.push(source, updates, base, self._settling(settle, updates), settings)
        self.last, self._is_loading = pushed, False
        self._groups.absorb_pushed(pushed)
        # The options of that revision are known here; the weights of that revision may not be.
        self._told = pushed.version.revision
        self._base = replace(self._base, durable_version=pushed.version.durable_version)
        return pushed

    def flush(self, settings: PushSettings) -> PushResult:
        """Makes the step of what the job has accumulated; puts the new weights into the arrays, as `step` does."""
        return self.step([[None] * len(group.arrays) for group in self.groups], settings=replace(settings, flush=True))

    @property
    def pending(self) -> int:
        """How many pushes, or rounds, were accumulated without a step, as of the last answer."""
        return 0 if self.last is None else self.last.accumulated

    def _find_out(self) -> None:
        """Learns the fate of the last push, if it is unknown: option changes that it brought may be in force.

        The session may change its lane here, so gradients must be encoded after this.
        """
        self.session.find_out()

    def _settling(self, settle: Callable[[bool], None], updates: tuple[GroupUpdate, ...]) -> Settle:
        def settled(applied: bool, options: Sequence[GroupOptions]) -> None:
            settle(applied)
            if applied:
                self._groups.absorb_own(updates, options)

        return settled

    @recovers
    def pull(
        self,
        *,
        only_if_newer: bool = False,
        groups: Names = (),
        parameters: Names = (),
        weights: str = "",
        min_version: int = 0,
    ) -> bool:
        """Puts the current weights into the arrays and the current options into the dicts.

        With `only_if_newer`, returns False and transfers nothing if the arrays hold them already. With some `groups` or
        `parameters`, or an average as `weights`, only these are read, and `base` stays what it was. The caller has
        waited until the job had come to `min_version`.
        """
        with self._lock:
            self._use()
            only_if_newer = only_if_newer and not self._has_average and not self._is_behind
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
                    min_version=min_version,
                )
            except (EmptyAverage, UnknownAverage, NotFound):
                self._has_average = had_average  # nothing was written
                raise
            if pulled.not_modified:
                return False
            self._groups.absorb(pulled.options)
            if not some:
                self._base, self._has_average, self._is_behind = pulled.version, False, False
            self._take_buffers(but=self._buffers.unchanged_by(names_of(groups), names_of(parameters)))
            self._groups.ask_effective()
            return True

    # State

    @cached_property
    def needs_closure(self) -> bool:
        """Whether an algorithm asks for loss and gradients several times in one step."""
        return self._asks_for_closures()

    @recovers
    def write_state(
        self, states: Sequence[Sequence[ParameterState]], *, weights: OptionalArraysByGroup | None = None
    ) -> None:
        """Replaces options and the state of all parameters (as `state.read` gives it), all or nothing.

        The options are those of the dicts, whoever changed them last. `weights` replace the job's in the same call;
        None leaves a parameter as it is.
        """
        with self._lock:
            self._find_out()
            writer = StateWriter([group.names for group in self.groups], states, self._own.first)
            existing = self._existing
            is_loading = existing is not None and existing.own is not None and not existing.is_confirmed
            buffers = self._buffers.loaded() if is_loading else self._buffers.changed()
            rows = [[None] * len(group.arrays) for group in self.groups] if weights is None else weights
            self._write(writer.groups, self._groups.everything(), [writer.frames], [*buffers, *rows])
            self._buffers.take(buffers)
            self._is_loading = True
            if self._existing is not None and not self._existing.is_confirmed:
                self._existing = None  # the checkpoint decides on weights, state and options

    def put_back(self, weights: ArraysByGroup) -> None:
        """Puts weights into the arrays, after they were sent to the job."""
        self._incoming.put([*self._incoming.all_weights[: self._own.first], *weights])

    @recovers
    def write_weights(self) -> None:
        """Replaces the job's weights with those of the arrays."""
        with self._lock:
            self._find_out()
            buffers = self._buffers.everything()
            self._write((), (), [], [*buffers, *self._own.arrays[self._own.first :]])
            self._buffers.take(buffers)
            self._existing = None

    @recovers
    def write_given(self, rows: OptionalArraysByGroup) -> None:
        """Replaces the job's weights with others by group and place (None: unchanged), then pulls."""
        with self._lock:
            self._existing = None
            self._find_out()
            self._write((), (), [], [*self._buffers.changed(), *rows])
            self.pull()

    def write_changes(self, places: Collection[tuple[int, int]]) -> None:
        """Replaces the weights of the parameters at these places (group, place) with those of their arrays.

        Raises `OtherWorkers` or `WeightsMovedOn` if that would undo steps that the arrays do not contain.
        """
        with self._lock:
            try:
                self._write_changes(places)
            except (RolledBack, JobLost) as cause:
                base = self._base.version
                self.recover(cause)
                if not self._is_behind:  # the job was created anew from the arrays
                    return
                now = f"those of version {self._base.version}"
                raise WeightsMovedOn(worker=self.session.worker, base=base, job=self.session.job, now=now) from None

    def _write_changes(self, places: Collection[tuple[int, int]]) -> None:
        self._find_out()
        session = self.session
        rows = [
            [array if (index, place) in places else None for place, array in enumerate(row)]
            for index, row in enumerate(self._own.arrays, -self._own.first)
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
        self._groups.absorb(options)
        self._base = version

    @recovers
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
        self._groups.absorb(options)
        if weights is not None and all(array is not None for row in weights for array in row):
            self._base, self._has_average, self._is_behind = version, False, False
        self._groups.ask_effective()
        return version
