"""Plans the memory of one job: the most that its layouts, options, state, averages and policy can need."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

from optd_server.engine import chronicle
from optd_server.engine.events import OptionEdits
from optd_server.engine.memory import Memory, Reservation, job_bytes, waiting_bytes
from optd_server.engine.options.fields import planned_state_bytes, state_bytes, working_bytes
from optd_server.engine.options.groups import Groups
from optd_server.engine.options.job_options import gradients_kept
from optd_server.engine.options.resolution import find_algorithm, resolve_job_options
from optd_server.engine.state import JobState
from optd_server.engine.step.averages import averages_of
from optd_server.store.flat import bytes_of, computed_bytes_of
from optd_wire.errors import MemoryExceeded
from optd_wire.layout import GroupLayout, lay_out
from optd_wire.values import GroupOptions, GroupSpec, JobOptions, JobSpec

ROW_COPIES = 3
"""Rows of a gradient are kept as they came, sorted by id, and summed."""


class Room(Protocol):
    """The part of a policy that determines how much memory it needs."""

    @property
    def slots(self) -> int:
        """How many gradients, complete or still arriving, are kept at once."""

    @property
    def planned(self) -> int:
        """For how many pushes that are held memory is planned."""


def planned_bytes(spec: JobSpec, room: Room, memory: Memory) -> int:
    """Return the bytes to reserve for a new job; raise the problem of an option."""
    algorithm = find_algorithm(spec.algorithm)
    options = resolve_job_options(spec.options)
    return job_bytes(
        room.slots,
        room.planned,
        [lay_out(group.parameters) for group in spec.groups],
        [planned_state_bytes(group, algorithm, spec.defaults) for group in spec.groups],
        gradients=gradients_kept(options),
        averages=len(averages_of(options)),
        copies=memory.copies,
    )


class JobMemory:
    """The reservation of one job, which follows what the job may need."""

    def __init__(self, state: JobState, room: Room, memory: Memory, reservation: Reservation) -> None:
        self._room = room
        self._state = state
        self._memory = memory
        self._reservation = reservation
        self._held = Reservation(f"what pushes of job {state.name!r} hold while they wait")
        self._waiting = 0
        """The bytes that pushes hold while they wait, planned for or not."""

    @property
    def bytes(self) -> int:
        """The bytes that are reserved for the job."""
        return self._reservation.bytes

    def check_replacing(self, needed: int) -> None:
        """Raise `MemoryExceeded` if a job of `needed` bytes would not fit in place of this one."""
        self._memory.check(self._reservation, needed)

    def release(self) -> None:
        """End the reservation."""
        self._memory.release(self._reservation)
        self._memory.release(self._held)

    def check_group(self, spec: GroupSpec) -> None:
        """Raise `MemoryExceeded` if a new group would not fit."""
        self._memory.check(self._reservation, self._bytes_with(spec))

    # Each of the following reserves memory for a change that its block makes, and raises `MemoryExceeded` before the
    # block. If the block raises, the reservation is as before.

    def with_group(self, spec: GroupSpec) -> AbstractContextManager[None]:
        """Reserve memory for a new group."""
        return self._changing(self._bytes_with(spec))

    @contextmanager
    def with_policy(self, room: Room) -> Iterator[None]:
        """Reserve memory for another policy: for what it plans for, and for what pushes hold beyond that."""
        before, self._room = self._room, room
        try:
            needed = self._bytes(self._state.groups.options)
            beyond = self._unplanned(self._waiting) - self._held.bytes
            with self._changing(needed, beyond):
                yield
        except BaseException:
            self._room = before
            raise
        self._memory.reserve(self._held, self._unplanned(self._waiting))

    def with_options(self, edits: OptionEdits) -> AbstractContextManager[None]:
        """Reserve memory for changed options."""
        needs_more = any(self._needs_more(index, changed) for index, changed in edits.groups)
        if needs_more or (edits.job is not None and self._kept(edits.job) != self._kept(self._state.options)):
            return self._changing(self._bytes(self._changed(edits.groups), job=edits.job))
        return nullcontext()

    def with_states(
        self, fields: Collection[str], changes: Sequence[tuple[int, GroupOptions]]
    ) -> AbstractContextManager[None]:
        """Reserve memory for state fields that a worker writes, and for changed options.

        The fields count even if no option needs them.
        """
        return self._changing(self._bytes(self._changed(changes), fields))

    @contextmanager
    def _changing(self, needed: int, beyond: int = 0) -> Iterator[None]:
        """Reserve memory for a change; after the block the caller reserves `beyond` bytes for another purpose."""
        before = self._reservation.bytes
        # What is no longer needed is kept until the end, so that going back never asks for more.
        self._memory.reserve(self._reservation, max(before, needed + beyond))
        try:
            yield
        except BaseException:
            self._memory.reserve(self._reservation, before)
            raise
        self._memory.reserve(self._reservation, needed)

    @property
    def copied(self) -> int:
        """The bytes of one copy of everything that survives of the job."""
        groups, options = self._state.groups, self._state.options
        return bytes_of(groups.layouts) * (1 + len(averages_of(options.options))) + (
            computed_bytes_of(groups.layouts) * self._kept(options)["gradients"] + sum(self._states(groups.options))
        )

    def fit(self) -> None:
        """Set the reservation to what the job needs now; raise `MemoryExceeded`."""
        self._memory.reserve(self._reservation, self._bytes(self._state.groups.options))

    def check_rows(self, size: int) -> None:
        """Raise `MemoryExceeded` if `size` bytes of a gradient's rows cannot be received and added up.

        The reservation already covers a whole gradient, of which parameters that come in rows use nothing.
        """
        more = ROW_COPIES * size - computed_bytes_of(self._state.groups.layouts)
        if more > 0:
            self._memory.check(self._reservation, self._reservation.bytes + more)

    def hold(self, size: int) -> None:
        """Reserve memory for pushes that wait with `size` bytes in total; raise `MemoryExceeded`.

        The job's reservation already covers a gradient of each push that is planned for.
        """
        self._memory.reserve(self._held, self._unplanned(size))
        self._waiting = size

    def could_hold(self, size: int) -> bool:
        """Whether there is memory for pushes that wait with `size` bytes in total, if nothing else of the job waits."""
        try:
            self._memory.check(self._held, self._unplanned(size))
        except MemoryExceeded:
            return False
        return True

    def let_go(self, size: int) -> None:
        """Reserve no more than pushes that wait with `size` bytes need. Never raises, also if less is planned now."""
        self._waiting = size
        self._held.bytes = min(self._held.bytes, self._unplanned(size))

    def _unplanned(self, size: int) -> int:
        return max(0, size - waiting_bytes(self._room.planned, self._state.groups.layouts))

    def tell_short(self, size: int) -> None:
        """Tell the operator that a push waits for memory, while pushes that wait take `size` bytes in total."""
        chronicle.no_memory(self._state, size, self.limit)

    @property
    def limit(self) -> int:
        """The bytes that the server may use."""
        return self._memory.limit

    def _changed(self, changes: Iterable[tuple[int, GroupOptions]]) -> list[GroupOptions]:
        options = list(self._state.groups.options)
        for index, changed in changes:
            options[index] = changed
        return options

    def _needs_more(self, index: int, changed: GroupOptions) -> bool:
        groups = self._state.groups
        now = groups.options[index]
        return _fields(groups, index, changed) != _fields(groups, index, now) or (
            _working(groups, index, changed) != _working(groups, index, now)
        )

    def _bytes_with(self, spec: GroupSpec) -> int:
        groups = self._state.groups
        states = [*self._states(groups.options), planned_state_bytes(spec, groups.algorithm, groups.defaults)]
        return self._total([*groups.layouts, lay_out(spec.parameters)], states, self._state.options)

    def _bytes(
        self, options: Sequence[GroupOptions], fields: Collection[str] = (), job: JobOptions | None = None
    ) -> int:
        states = self._states(options, fields)
        return self._total(self._state.groups.layouts, states, job or self._state.options)

    def _total(self, layouts: Sequence[GroupLayout], states: Sequence[int], options: JobOptions) -> int:
        return job_bytes(
            self._room.slots,
            self._room.planned,
            layouts,
            states,
            **self._kept(options),
            copies=self._memory.copies,
        )

    def _kept(self, options: JobOptions) -> dict[str, int]:
        """Return how many gradients and averages the options need. Rounds that are accumulated now count too."""
        gradients = max(gradients_kept(options.options), int(self._state.accumulation.count > 0))
        return {"gradients": gradients, "averages": len(averages_of(options.options))}

    def _states(self, options: Sequence[GroupOptions], fields: Collection[str] = ()) -> list[int]:
        """Return, by group, the bytes of the state that it has, that `options` need, or that `fields` name.

        State that no option needs any more still counts, because it is kept.
        """
        groups, states = self._state.groups, []
        for index, (group, layout) in enumerate(zip(options, groups.layouts, strict=False)):
            started = map(partial(_started, groups, index), range(len(layout.segments)))
            names = _fields(groups, index, group).union(fields, *started)
            known = (field for name, field in groups.state_fields[index].items() if name in names)
            states.append(state_bytes(known, layout) + _working(groups, index, group))
        return states


def _fields(groups: Groups, index: int, group: GroupOptions) -> set[str]:
    return {field.name for field in groups.fields(index, group.options)}


def _working(groups: Groups, index: int, group: GroupOptions) -> int:
    return working_bytes(groups.algorithms[index], group.options, groups.layouts[index])


def _started(groups: Groups, group: int, segment: int) -> set[str]:
    started = groups.state(group, segment).started
    return {name for name, flags in started.items() if flags.any()}
