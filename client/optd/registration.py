"""What both optimizer faces (numpy and torch) share: arrays tied to a job's groups through a session."""

import logging
from collections.abc import Iterator, MutableMapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from optd import environment
from optd.arrays import Array, FlatView
from optd.connection import connect
from optd.copying import copy_all
from optd.encoding import Wire
from optd.feedback import ErrorFeedback
from optd.group_options import GROUP_OPTIONS
from optd.lock import OwnedLock
from optd.options import OptionMirror
from optd.params import ParamGroup
from optd.row_gradients import Gradients, WithRows, has_rows, whole_ones
from optd.rows import whole_frames, write_rows
from optd.session import Session, Settle
from optd.states import ParameterState, StateReader, StateWriter
from optd.terms import AS_THEY_ARE, Terms
from optd.transport.base import Known, Names, Sink, Source
from optd.transport.shm import InMemory, Mapped, SharedMemoryLane
from optd_wire.encodings.base import Encoding
from optd_wire.errors import DuplicateName, InvalidRequest, JobMismatch
from optd_wire.frames import Frame, Outgoing, Received
from optd_wire.values import (
    WEIGHTS,
    GroupInfo,
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

Rows = Sequence[Sequence[Array | None]]
"""Whole gradients by group and place."""


def open_session(
    session: Session | None, server: str | None, job: str | None, worker: str | None
) -> tuple[Session, bool]:
    """The session to use, and whether it was opened here and has to be closed here."""
    if session is not None:
        return session, False
    return connect(environment.server(server), job=job, worker=worker), True


class Registration:
    """Groups of arrays that hold a job's weights, and the groups' option dicts beside them.

    Arrays are written in place with what is pulled; with `zero_copy`, where the session shares memory with the server,
    `weights` are then what lies there, and the arrays stay as they are; `writable` says that the caller lets others
    write to them, which is undone before they are read anew. One call at a time: others wait.
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
    ) -> None:
        self.session = session
        self.zero_copy = zero_copy
        self._algorithm = algorithm
        self._writable = writable
        self.groups = list(groups)
        self._dicts = list(dicts)
        self._defaults = defaults
        self._mirror = OptionMirror()
        self._lock = OwnedLock()
        self._feedback: dict[str, ErrorFeedback] = {}
        self._shared: tuple[SharedMemoryLane, list[list[Array]]] | None = None
        self._lane: SharedMemoryLane | None = None
        self._rows: dict[int, tuple[Mapped, list[list[Array]]]] = {}
        self._weights: list[list[Array]] | None = None
        self._has_average = False
        """Whether the arrays hold an average, or did when a call began that nobody knows the end of."""
        self._view = self._new_view(self.groups)
        spec = JobSpec(
            name=session.job,
            algorithm=algorithm,
            defaults=defaults,
            groups=tuple(group.spec() for group in groups),
            policy=session.policy,
            options=session.options,
        )
        membership, created = session.register(spec, self._view.source(self._arrays()))
        self._base = membership.job.version
        if not created:
            self._warn_of_options(membership.job.groups)
            self._warn_of_job_options(membership.job.options)
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

    def _write(self, received: Sequence[Received]) -> None:
        """Copies weights into the arrays."""
        frames = received if isinstance(received, Mapped) else whole_frames(received)
        if isinstance(frames, Mapped):
            self._copy(self._rows_of(frames))
        else:
            if self._weights is not None:
                # These may be weights of some parameters only: the others stay what they are.
                self._copy(self._weights)
            self._view.write(frames, self._arrays())
            write_rows(received, self.groups)
        self._weights = None

    def _copy(self, rows: Sequence[Sequence[Array]]) -> None:
        copy_all(
            [
                pair
                for group, row in zip(self.groups, rows, strict=False)
                for pair in zip(group.arrays, row, strict=True)
            ]
        )

    def _place(self, frames: Sequence[Frame]) -> None:
        """Takes weights that stay where they are."""
        assert isinstance(frames, Mapped)
        self._weights = self._rows_of(frames)

    def _rows_of(self, frames: Mapped) -> list[list[Array]]:
        """Mapped weights by group and place, of the groups that are ours."""
        if self.session.shared_memory is not self._lane:
            self._rows.clear()  # which would hold memory that the server has given up
            self._lane = self.session.shared_memory
        known = self._rows.get(id(frames))
        # Of an object that is gone another one may have the number.
        if known is None or known[0] is not frames or len(known[1]) != len(self.groups):
            known = self._rows[id(frames)] = (frames, self._view.rows(frames))
        return known[1]

    @property
    def _in_place(self) -> Sink | None:
        if not self.zero_copy:
            return None
        memory = self.session.shared_memory
        if memory is not None:
            memory.writable = self._writable
        return self._place

    @property
    def weights(self) -> Sequence[Sequence[Array]]:
        """The weights by group and place: the groups' arrays, or what lies in shared memory, until the next call."""
        return self._arrays() if self._weights is None else self._weights

    @property
    def in_arrays(self) -> bool:
        """Whether the weights are in the groups' arrays, and not in shared memory."""
        return self._weights is None

    def shared_gradients(self) -> list[list[Array]] | None:
        """Where the server reads gradients from, by group and place; the same list as long as that is the same place.

        None where it shares no memory with us, and while it may still read a push whose fate nobody knows.
        """
        memory = self.session.shared_memory
        # Groups that another worker has added have room there, and nothing of ours.
        if memory is None or self.session.in_doubt or len(memory.gradients) < len(self.groups):
            return None
        if self._shared is None or self._shared[0] is not memory or len(self._shared[1]) != len(self.groups):
            segments = [
                Frame.of(group, segment.offset, values)
                for group, (layout, arrays) in enumerate(zip(self._view.layouts, memory.gradients, strict=False))
                for segment, values in zip(layout.segments, arrays, strict=True)
            ]
            self._shared = (memory, self._view.rows(segments))
        return self._shared[1]

    def _wire(self, encoding: str | None) -> Wire:
        """How a push and its reply carry numbers; raises `InvalidRequest` where the lane carries them unchanged."""
        wire = self.session.wire if encoding is None else Wire.of(encoding)
        if not wire.exact and self.session.in_doubt:
            # Which may end on another lane, so that it comes before anything is encoded for this one; and where it
            # fails, there is no encoded push yet that nobody would settle.
            self.session.find_out()
        if not wire.exact and self.session.shared_memory is not None:
            problem = f"lane 'shm' carries numbers unchanged; encoding {wire.name!r} is for lane 'grpc'"
            raise InvalidRequest(problem=problem)
        return wire

    def _source(
        self, gradients: Gradients, wire: Wire, terms: Terms, *, has_weights: bool = False
    ) -> tuple[Source, Settle]:
        """What to send of gradients, encoded or written where the server reads it; and whom to tell what became of it.

        What an encoding has left out of earlier gradients counts with this one, if it has the same encoding.
        """
        whole, with_rows = whole_ones(gradients), has_rows(gradients)
        shared = None if with_rows else self.shared_gradients()
        if shared is not None:
            return self._shared_source(whole, shared), _forget
        source, settle = self._whole_source(whole, wire.gradients, wire.name, terms.loss_scale or 1.0)
        if with_rows:
            source = WithRows(source, gradients, wire.gradients, self.session.batch_bytes, has_weights)
        return source, settle

    def _whole_source(
        self, gradients: Rows, encoding: Encoding | None, name: str, loss_scale: float
    ) -> tuple[Source, Settle]:
        if encoding is None or not encoding.leaves_out:
            return self._view.source(gradients, encoding=encoding), _forget
        feedback = self._feedback.setdefault(name, ErrorFeedback(encoding))
        return feedback.begin(self._view, gradients, loss_scale), lambda applied: feedback.settle(applied=applied)

    def _shared_source(self, gradients: Rows, shared: Sequence[Sequence[Array]]) -> Source:
        memory = self.session.shared_memory
        assert memory is not None
        pairs = [
            (target, given)
            for row, given_row in zip(shared, gradients, strict=True)
            for target, given in zip(row, given_row, strict=True)
            if given is not None
        ]
        whole = len(pairs) == sum(map(len, shared))
        moved = [pair for pair in pairs if pair[0] is not pair[1]]
        # What lies in another parameter's place must not be written over before it is read.
        copy_all([(target, given.copy() if memory.holds(given) else given) for target, given in moved])
        everything = whole and len(memory.gradients) == len(self.groups)
        ranges = None if everything else tuple(self._view.ranges(gradients))
        return InMemory(memory, ranges, self._view.source(gradients))

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
            view = self._new_view([group], first_group=len(self.groups))
            info = self.session.add_group(group.spec(), view.source([group.arrays]))
            if info.index != len(self.groups):
                # Others have added groups that these lack: everything is addressed by place.
                aspect = f"group {group.name!r} at place"
                raise JobMismatch(job=self.session.job, aspect=aspect, theirs=info.index, ours=len(self.groups))
            self.groups.append(group)
            self._view = self._new_view(self.groups)
            try:
                pulled = self.session.pull_into(self._write, None, in_place=self._in_place)
            except BaseException:
                # The job keeps the group; adding it again finds it there.
                self.groups.pop()
                self._view = self._new_view(self.groups)
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
        with self._lock:
            updates = self._mirror.changes(self._dicts)
            wire = self._wire(encoding)
            source, settle = self._source(
                gradients, wire, terms, has_weights=has_weights and self.in_arrays and not self._has_average
            )
            pushed, pulled = self.session.step(
                source, updates, self._base, settle, self._write, self._in_place, wire.weights, terms
            )
            self._mirror.absorb(pushed.options, self._dicts)
            # The options in force were told as of the step; what has changed since comes with the next reply.
            self._base = JobVersion(pulled.version.version, pulled.version.durable_version, pushed.version.revision)
            self._has_average = False
            return pushed

    def push(self, gradients: Gradients, encoding: str | None = None, terms: Terms = AS_THEY_ARE) -> PushResult:
        """Pushes gradients; the arrays stay as they are."""
        with self._lock:
            updates = self._mirror.changes(self._dicts)
            source, settle = self._source(gradients, self._wire(encoding), terms)
            pushed = self.session.push(source, updates, self._base, settle, terms)
            self._mirror.absorb(pushed.options, self._dicts)
            self._base = JobVersion(self._base.version, pushed.version.durable_version, pushed.version.revision)
            return pushed

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
                self._write,
                known,
                in_place=None if some else self._in_place,
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

    def read_state(self) -> list[list[ParameterState]]:
        """The state of each parameter by group and place: "step" and arrays; empty before its first step."""
        with self._lock:
            reader = StateReader([group.spec().parameters for group in self.groups])
            self.session.read_state(into=reader.begin)
            return reader.states()

    @cached_property
    def needs_closure(self) -> bool:
        """Whether a step of the algorithm asks for loss and gradients several times."""
        return self.session.algorithm(self._algorithm).needs_closure

    def shaped_fields(self) -> frozenset[str]:
        """The states that have shapes or dtypes of their own: what fits there the server alone knows."""
        return frozenset(self.session.algorithm(self._algorithm).shaped_state)

    def write_state(self, states: Sequence[Sequence[ParameterState]], *, weights: bool = False) -> None:
        """Replaces the state of all parameters ("step" and arrays, as `read_state` gives them) and options, at once.

        Options are what has been changed in the dicts; with `weights`, the arrays' weights go with them.
        """
        with self._lock:
            writer = StateWriter([group.names for group in self.groups], states)
            numbers = [writer.frames, self._own_weights] if weights else [writer.frames]
            self._replace(writer.groups, self._mirror.changes(self._dicts), numbers)

    def write_weights(self) -> None:
        """Replaces the job's weights by what the arrays hold now."""
        with self._lock:
            self._replace((), (), [self._own_weights])

    def _own_weights(self) -> Iterator[Sequence[Outgoing]]:
        return self._view.batches(self._arrays(), WEIGHTS)

    def _replace(
        self, groups: tuple[GroupState, ...], updates: tuple[GroupUpdate, ...], numbers: Sequence[Source]
    ) -> None:
        session = self.session
        header = WriteStateHeader(session.job, session.worker, session.epoch, groups, updates=updates)
        options, _ = session.write_state(header, lambda: chain.from_iterable(source() for source in numbers))
        self._mirror.absorb(options, self._dicts)


def _forget(_: bool) -> None:
    """For pushes that leave nothing behind."""
