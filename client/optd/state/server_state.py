"""The optimizer state that the server holds for a registration: read and replaced whole, or by parameter."""

import logging
from collections.abc import Callable, Collection, Sequence

from optd.params.group_arrays import GroupArrays
from optd.session.lock import OwnedLock
from optd.session.session import Session
from optd.state.all_parameters import STEP, ParameterState, StateReader, StateWriter
from optd.state.one_parameter import ParameterReader, StateIndex, changed_group, frames_of
from optd.transport.numbers import Source
from optd_wire.values import GroupState, JobVersion, ReadStateResult

logger = logging.getLogger("optd")

Read = Callable[..., ReadStateResult]
"""As `Inquiry.read_state`."""
Write = Callable[[tuple[GroupState, ...], Source], JobVersion]
"""Replaces state on the server; returns the job's version after it."""


class ServerState:
    """State by group and place: "step", a count, and arrays; empty before a parameter's first step. Buffers have none.

    `algorithm` is that of groups that name none.

    One call at a time: other threads wait for `lock`.
    """

    def __init__(
        self, session: Session, own: GroupArrays, lock: OwnedLock, algorithm: str, read: Read, write: Write
    ) -> None:
        self._session = session
        self._own = own
        self._lock = lock
        self._algorithm = algorithm
        self._read = read
        self._write = write
        self._shaped: dict[str, frozenset[str]] = {}

    def shaped_fields(self, group: int) -> frozenset[str]:
        """The states of a group whose shapes or dtypes are not the parameters'; only the server can check those."""
        algorithm = self._own.of_parameters[group].algorithm or self._algorithm
        if algorithm not in self._shaped:
            self._shaped[algorithm] = frozenset(self._session.algorithm(algorithm).shaped_state)
        return self._shaped[algorithm]

    def read(self) -> tuple[list[list[ParameterState]], StateIndex]:
        """The state of all parameters, with its version."""
        with self._lock:
            reader = StateReader([group.spec().parameters for group in self._own.groups])
            result = self._read(into=reader.begin)
            return reader.states()[self._own.first :], self._index_of(result)

    def index(self) -> StateIndex:
        """Which state each parameter has now, without the numbers."""
        with self._lock:
            result = self._read((STEP,), into=lambda _: lambda _: None)
            return self._index_of(result)

    def _index_of(self, result: ReadStateResult) -> StateIndex:
        return StateIndex(result.version, result.groups[self._own.first : len(self._own)])

    def read_parameter(self, group: int, place: int, fields: Collection[str]) -> tuple[ParameterState, JobVersion]:
        """Those of `fields` that one parameter has, and their version."""
        with self._lock:
            spec = self._own.of_parameters[group].spec()
            reader = ParameterReader(spec.parameters, place)
            wanted = [name for name in fields if name != STEP] or [STEP]
            self._read(wanted, spec.name, spec.parameters[place].name, into=reader.begin)
            return reader.state(fields), reader.version

    def replace(self, states: Sequence[Sequence[ParameterState]]) -> None:
        """Replaces the state of all parameters; weights and options stay."""
        with self._lock:
            writer = StateWriter([group.names for group in self._own.of_parameters], states, self._own.first)
            self._write(writer.groups, writer.frames)

    def write_parameter(self, group: int, place: int, state: ParameterState, gone: Collection[str]) -> None:
        """Replaces some entries of one parameter's state and removes those in `gone`; others stay.

        Without "step" the count stays, but is at least 1 if there is state. Warns if another worker has stepped
        meanwhile: the step counts of the group's other parameters are then out of date.
        """
        with self._lock:
            spec = self._own.of_parameters[group].spec()
            arrays = {name: array for name, array in state.items() if name != STEP}
            before = self._read((STEP,), spec.name, into=lambda _: lambda _: None)
            (current,) = before.groups
            kept = 0 if STEP in gone else current.steps[place]
            steps = int(state.get(STEP, max(kept, 1) if arrays else kept))
            changed = changed_group(current, place, arrays, gone, steps, self.shaped_fields(group))
            batch_bytes = self._session.batch_bytes
            now = self._write((changed,), lambda: frames_of(changed, spec.parameters, place, arrays, batch_bytes))
            if now.version != before.version.version:
                logger.warning(
                    "job %s went from version %d to %d while the state of %s was written: the step counts of its group "
                    "%s are those of version %d; write state while no other worker steps",
                    self._session.job,
                    before.version.version,
                    now.version,
                    spec.parameters[place].name,
                    spec.name,
                    before.version.version,
                )
