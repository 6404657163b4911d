"""What both optimizer faces (numpy and torch) share: arrays tied to a job's groups through a session."""

import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np

from optd import environment
from optd.arrays import Array, FlatView, empty_arrays
from optd.lock import OwnedLock
from optd.options import OptionMirror
from optd.params import ParamGroup
from optd.session import Session, connect
from optd_wire.errors import DuplicateName, JobMismatch
from optd_wire.frames import Frame
from optd_wire.values import (
    WEIGHTS,
    GroupInfo,
    GroupState,
    JobSpec,
    JobVersion,
    Options,
    PushResult,
    StateEntries,
    WriteStateHeader,
)

logger = logging.getLogger("optd")

Rows = Sequence[Sequence[Array | None]]
ParameterState = dict[str, Any]


def open_session(
    session: Session | None, server: str | None, job: str | None, worker: str | None
) -> tuple[Session, bool]:
    """The session to use, and whether it was opened here and has to be closed here."""
    if session is not None:
        return session, False
    return connect(environment.server(server), job=job, worker=worker), True


class Registration:
    """Groups of arrays that hold a job's weights, and the groups' option dicts beside them.

    Arrays are written in place with what is pulled. One call at a time: others wait.
    """

    def __init__(
        self,
        session: Session,
        algorithm: str,
        defaults: Options,
        groups: Sequence[ParamGroup],
        dicts: Sequence[MutableMapping[str, Any]],
    ) -> None:
        self.session = session
        self.groups = list(groups)
        self._dicts = list(dicts)
        self._defaults = defaults
        self._mirror = OptionMirror()
        self._lock = OwnedLock()
        self._view = self._new_view(self.groups)
        spec = JobSpec(
            name=session.job,
            algorithm=algorithm,
            defaults=defaults,
            groups=tuple(group.spec() for group in groups),
            policy=session.policy,
        )
        membership, created = session.register(spec, self._view.source(self._arrays()))
        self._base = membership.job.version
        if not created:
            self._warn_of_options(membership.job.groups)
        for info, group in zip(membership.job.groups, self._dicts, strict=False):
            self._mirror.add(info.options, group)
        self.attached = not created or self._base.version > 0
        """Whether the job was there before, so that its weights are now in the arrays."""
        if self.attached:
            self.pull()

    def _new_view(self, groups: Sequence[ParamGroup], first_group: int = 0) -> FlatView:
        specs = [group.spec().parameters for group in groups]
        return FlatView(specs, first_group=first_group, batch_bytes=self.session.batch_bytes)

    def _arrays(self) -> list[list[Array]]:
        return [group.arrays for group in self.groups]

    def _write(self, frame: Frame) -> None:
        self._view.write(frame, self._arrays())

    @property
    def base(self) -> JobVersion:
        """The version and revision of the weights that the arrays hold."""
        return self._base

    def _warn_of_options(self, infos: Sequence[GroupInfo]) -> None:
        """Attaching takes the job's options; somebody who asked for others should know."""
        for info, group in zip(infos, self.groups, strict=False):
            asked = {**self._defaults, **group.options}
            for name, value in info.options.options.items():
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

    def add_group(self, group: ParamGroup, options: MutableMapping[str, Any]) -> None:
        """Adds a group to the job, with its arrays as weights, or finds it there; then pulls.

        Raises `JobMismatch` where these lack a group that was added before it.
        """
        with self._lock:
            if group.name in [known.name for known in self.groups]:
                raise DuplicateName(kind="group", name=group.name, job=self.session.job)
            view = self._new_view([group], first_group=len(self.groups))
            info = self.session.add_group(group.spec(), view.source([group.arrays]))
            if info.index != len(self.groups):
                # Others have added groups that these lack: everything is addressed by place.
                aspect = f"group {group.name!r} at place"
                raise JobMismatch(job=self.session.job, aspect=aspect, theirs=info.index, ours=len(self.groups))
            self.groups.append(group)
            self._view = self._new_view(self.groups)
            try:
                pulled = self.session.pull_into(self._write, None)
            except BaseException:
                # The job keeps the group; adding it again finds it there.
                self.groups.pop()
                self._view = self._new_view(self.groups)
                raise
            self._dicts.append(options)
            self._mirror.add(info.options, options)
            self._mirror.absorb(pulled.options, self._dicts)
            self._base = pulled.version

    def step(self, gradients: Rows) -> PushResult:
        """Pushes gradients and puts the new weights into the arrays."""
        with self._lock:
            updates = self._mirror.changes(self._dicts)
            pushed, pulled = self.session.step(self._view.source(gradients), updates, self._base, self._write)
            self._mirror.absorb(pushed.options, self._dicts)
            # The options in force were told as of the step; what has changed since comes with the next reply.
            self._base = JobVersion(pulled.version.version, pulled.version.durable_version, pushed.version.revision)
            return pushed

    def push(self, gradients: Rows) -> PushResult:
        """Pushes gradients; the arrays stay as they are."""
        with self._lock:
            updates = self._mirror.changes(self._dicts)
            pushed = self.session.push(self._view.source(gradients), updates, self._base)
            self._mirror.absorb(pushed.options, self._dicts)
            self._base = JobVersion(self._base.version, pushed.version.durable_version, pushed.version.revision)
            return pushed

    def pull(self) -> None:
        """Puts the current weights into the arrays and the current options into the dicts."""
        with self._lock:
            pulled = self.session.pull_into(self._write, None)
            self._mirror.absorb(pulled.options, self._dicts)
            self._base = pulled.version

    def send_options(self) -> None:
        """Sends what has been changed in the dicts now, not with the next push."""
        with self._lock:
            for update in self._mirror.changes(self._dicts):
                self._mirror.absorb_one(self.session.update_group(update), self._dicts)

    # State

    def read_state(self) -> list[list[ParameterState]]:
        """The state of each parameter by group and place: "step" and arrays; empty before its first step."""
        with self._lock:
            specs = [group.spec().parameters for group in self.groups]
            fields: dict[str, list[list[Array]]] = {}

            def arrays(field: str) -> list[list[Array]]:
                if field not in fields:
                    fields[field] = empty_arrays(specs)
                return fields[field]

            result = self.session.read_state(into=lambda frame: self._view.write(frame, arrays(frame.field)))
            # A group that another worker has added is none of these.
            groups = result.groups[: len(self.groups)]
            return [[_parameter_state(group, place, arrays) for place in range(len(group.steps))] for group in groups]

    def write_state(self, states: Sequence[Sequence[ParameterState]]) -> None:
        """Replaces the state of all parameters: "step" and arrays, as `read_state` gives them."""
        fields = sorted({name for row in states for state in row for name in state} - {"step"})
        groups = tuple(_group_state(index, row, fields) for index, row in enumerate(states))
        rows = {field: [[state.get(field) for state in row] for row in states] for field in fields}
        self._write_fields(groups, rows)

    def write_weights(self) -> None:
        """Replaces the job's weights by what the arrays hold now."""
        self._write_fields((), {WEIGHTS: self._arrays()})

    def _write_fields(self, groups: tuple[GroupState, ...], rows: dict[str, Any]) -> None:
        with self._lock:
            session = self.session
            header = WriteStateHeader(session.job, session.worker, session.epoch, groups)

            def numbers() -> Iterator[Any]:
                for field, arrays in rows.items():
                    yield from self._view.source(arrays, field)()

            session.write_state(header, numbers)


def _group_state(index: int, row: Sequence[ParameterState], fields: Iterable[str]) -> GroupState:
    # torch's SGD keeps no count; a parameter that has a state has had a step.
    steps = tuple(int(np.asarray(state.get("step", 1 if state else 0))) for state in row)
    entries = tuple(StateEntries(field, tuple(field in state for state in row)) for field in fields)
    return GroupState(index, steps, entries)


def _parameter_state(
    group: GroupState, place: int, arrays: Callable[[str], Sequence[Sequence[Array]]]
) -> ParameterState:
    """In torch's order: the step first."""
    counted: ParameterState = {"step": group.steps[place]} if group.steps[place] else {}
    kept = {entry.field: arrays(entry.field)[group.group][place] for entry in group.entries if entry.present[place]}
    return counted | kept
