"""What both optimizer faces (numpy and torch) share: arrays tied to a job's groups through a session."""

import logging
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

from optd import environment
from optd.arrays import Array
from optd.connection import connect
from optd.gradients_out import GradientsOut
from optd.group_arrays import GroupArrays
from optd.group_options import GROUP_OPTIONS
from optd.lock import OwnedLock
from optd.options import OptionMirror, Shown, as_numpy
from optd.params import ParamGroup
from optd.row_gradients import Gradients
from optd.session import Session, Settle
from optd.states import ParameterState, StateReader, StateWriter
from optd.terms import AS_THEY_ARE, Terms
from optd.transport.base import Known, Names, Source
from optd.weights_in import WeightsIn
from optd_wire.errors import DuplicateName, JobMismatch
from optd_wire.values import (
    GroupInfo,
    GroupOptions,
    GroupState,
    GroupUpdate,
    JobOptions,
    JobSpec,
    JobVersion,
    Options,
    PushResult,
    WriteStateHeader,
)

logger = logging.getLogger("optd")


def open_session(
    session: Session | None, server: str | None, job: str | None, worker: str | None
) -> tuple[Session, bool]:
    """The session to use, and whether it was opened here and has to be closed here."""
    if session is not None:
        return session, False
    return connect(environment.server(server), job=job, worker=worker), True


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
        shown: Shown = as_numpy,
    ) -> None:
        self.session = session
        self.zero_copy = zero_copy
        self._algorithm = algorithm
        self._own = GroupArrays(groups, session.batch_bytes)
        self._incoming = WeightsIn(session, self._own, zero_copy=zero_copy, writable=writable)
        self._outgoing = GradientsOut(session, self._own)
        self._dicts = list(dicts)
        self._defaults = defaults
        self._mirror = OptionMirror(shown)
        self._lock = OwnedLock()
        self._has_average = False
        """Whether the arrays hold an average, or did when a call began that nobody knows the end of."""
        spec = JobSpec(
            name=session.job,
            algorithm=algorithm,
            defaults=defaults,
            groups=tuple(group.spec() for group in groups),
            policy=session.policy,
            options=session.options,
        )
        membership, created = session.register(spec, self._own.view.source(self._own.arrays))
        self._base = membership.job.version
        self._told = 0
        """The revision whose options the last push has told, where it is past that of `base`."""
        if not created:
            self._warn_of_options(membership.job.groups)
            self._warn_of_job_options(membership.job.options)
        for info, group in zip(membership.job.groups, self._dicts, strict=False):
            self._mirror.add(info.options, group)
        self.attached = not created or self._base.version > 0
        """Whether the job was there before, so that its weights are now in the arrays."""
        if self.attached:
            self.pull()

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
    def weights(self) -> Sequence[Sequence[Array]]:
        """The weights by group and place: the groups' arrays, or what lies in shared memory, until the next call."""
        return self._incoming.weights

    @property
    def in_arrays(self) -> bool:
        """Whether the weights are in the groups' arrays, and not in shared memory."""
        return self._incoming.in_arrays

    def shared_gradients(self) -> list[list[Array]] | None:
        """See `GradientsOut.shared_gradients`."""
        return self._outgoing.shared_gradients()

    @property
    def base(self) -> JobVersion:
        """The version and revision of the weights that the arrays hold."""
        return self._base

    def _warn_of_options(self, infos: Sequence[GroupInfo]) -> None:
        """Attaching takes the job's options; somebody who asked for others should know."""
        for info, group in zip(infos, self.groups, strict=False):
            asked = {**self._defaults, **group.options}
            for name, value in {**GROUP_OPTIONS, **info.options.options}.items():
                if name in asked and asked[name] != value:
                    logger.warning(
                        "job %s exists already: group %s goes on with %s=%s, not %s; change it in param_groups, or "
                        "delete the job to start afresh",
                        self.session.job,
                        group.name,
                        name,
                        value,
                        asked[name],
                    )

    def _warn_of_job_options(self, found: JobOptions) -> None:
        for name, asked in self.session.options.items():
            if found.options.get(name) != asked:
                logger.warning(
                    "job %s exists already: it goes on with %s=%s, not %s; change it with session.set_options()",
                    self.session.job,
                    name,
                    found.options.get(name),
                    asked,
                )

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
            try:
                pulled = self.session.pull_into(self._incoming.write, None, in_place=self._incoming.in_place)
            except BaseException:
                # The job keeps the group; adding it again finds it there.
                self._own.pop()
                raise
            self._dicts.append(options)
            self._mirror.add(info.options, options)
            self._mirror.absorb(pulled.options, self._dicts)
            self._base = pulled.version

    def step(
        self,
        gradients: Gradients,
        encoding: str | None = None,
        terms: Terms = AS_THEY_ARE,
        *,
        has_weights: bool = True,
    ) -> PushResult:
        """Pushes gradients and puts the new weights into the arrays.

        Those that have not changed since `base` may be left out, unless the arrays may hold others (`has_weights`).
        """
        incoming = self._incoming
        with self._lock:
            self._find_out()
            updates = self._mirror.changes(self._dicts)
            wire = self._outgoing.wire(encoding)
            source, settle = self._outgoing.source(
                gradients, wire, terms, has_weights=has_weights and incoming.in_arrays and not self._has_average
            )
            pushed, pulled = self.session.step(
                source,
                updates,
                self._base,
                self._settling(settle, updates),
                incoming.write,
                incoming.in_place,
                wire.weights,
                terms,
            )
            self._mirror.absorb(pushed.options, self._dicts)
            # The options in force were told as of the step; what has changed since comes with the next reply.
            self._base = JobVersion(pulled.version.version, pulled.version.durable_version, pushed.version.revision)
            self._has_average = False
            return pushed

    def push(self, gradients: Gradients, encoding: str | None = None, terms: Terms = AS_THEY_ARE) -> PushResult:
        """Pushes gradients; the arrays stay as they are."""
        with self._lock:
            self._find_out()
            updates = self._mirror.changes(self._dicts)
            source, settle = self._outgoing.source(gradients, self._outgoing.wire(encoding), terms)
            base = replace(self._base, revision=max(self._base.revision, self._told))
            pushed = self.session.push(source, updates, base, self._settling(settle, updates), terms)
            self._mirror.absorb(pushed.options, self._dicts)
            # The options of that revision are known; weights may have been written since those that are here.
            self._told = pushed.version.revision
            self._base = replace(self._base, durable_version=pushed.version.durable_version)
            return pushed

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
            only_if_newer = only_if_newer and not self._has_average
            known = Known(self._base.version, self._base.revision) if only_if_newer else None
            some = bool(groups or parameters or weights)
            self._has_average |= bool(weights)
            pulled = self.session.pull_into(
                self._incoming.write,
                known,
                in_place=None if some else self._incoming.in_place,
                groups=groups,
                parameters=parameters,
                weights_of=weights,
            )
            if pulled.not_modified:
                return False
            self._mirror.absorb(pulled.options, self._dicts)
            if not some:
                self._base, self._has_average = pulled.version, False
            return True

    # State

    def read_state(self) -> tuple[list[list[ParameterState]], int]:
        """The state of each parameter by group and place, and the version that it is of.

        It is "step" and arrays; empty before a parameter's first step.
        """
        with self._lock:
            reader = StateReader([group.spec().parameters for group in self.groups])
            self.session.read_state(into=reader.begin)
            return reader.states(), reader.version

    @cached_property
    def needs_closure(self) -> bool:
        """Whether a step of the algorithm asks for loss and gradients several times."""
        return self.session.algorithm(self._algorithm).needs_closure

    def shaped_fields(self) -> frozenset[str]:
        """The states that have shapes or dtypes of their own: what fits there the server alone knows."""
        return frozenset(self.session.algorithm(self._algorithm).shaped_state)

    def write_state(self, states: Sequence[Sequence[ParameterState]], *, weights: bool = False) -> None:
        """Replaces the state of all parameters ("step" and arrays, as `read_state` gives them) and options, at once.

        Options are those of the dicts, whether they have been changed here or by somebody else; with `weights`, the
        arrays' weights go with them.
        """
        with self._lock:
            self._find_out()
            writer = StateWriter([group.names for group in self.groups], states)
            self._write(writer.groups, self._mirror.everything(self._dicts), [writer.frames], weights=weights)

    def write_weights(self) -> None:
        """Replaces the job's weights by what the arrays hold now."""
        with self._lock:
            self._find_out()
            self._write((), (), [], weights=True)

    def drop_state(self) -> None:
        """Has the next step begin without a state."""
        with self._lock:
            self._find_out()
            writer = StateWriter([group.names for group in self.groups], [[{} for _ in g.names] for g in self.groups])
            self._write(writer.groups, (), [], weights=False)

    def _write(
        self,
        groups: tuple[GroupState, ...],
        updates: tuple[GroupUpdate, ...],
        numbers: Sequence[Source],
        *,
        weights: bool,
    ) -> None:
        session = self.session
        numbers = [*numbers, self._own.weights] if weights else numbers
        header = WriteStateHeader(session.job, session.worker, session.epoch, groups, updates=updates)
        options, version = session.write_state(header, lambda: chain.from_iterable(source() for source in numbers))
        self._mirror.absorb(options, self._dicts)
        if weights:
            self._base, self._has_average = version, False
