"""`apply`: the only code that changes a `JobState`. Running jobs and recovery both call it.

It knows no event loop, clock, socket or file. Each kind of event has one handler, a generator that yields its large
pieces of arithmetic: a server can run each piece in another thread, and `apply` runs it at once. The state may be
half-changed between two pieces. That is safe because readers see snapshots, never the state.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from optd_server.engine.compute import Compute
from optd_server.engine.events import (
    Created,
    Deleted,
    Event,
    Expired,
    Fenced,
    GroupAdded,
    Joined,
    Left,
    Mark,
    NonfiniteEntries,
    OptionEdits,
    OptionsChanged,
    PolicyChanged,
    RoundAdded,
    Skipped,
    StateReplaced,
    Stepped,
)
from optd_server.engine.membership.members import LEFT, Members
from optd_server.engine.options.groups import Groups
from optd_server.engine.options.job_options import initial
from optd_server.engine.options.resolution import find_algorithm
from optd_server.engine.state import JobState
from optd_server.engine.state_replacement import replace_state
from optd_server.engine.step.accumulation import finished
from optd_server.engine.step.arithmetic import Step
from optd_server.engine.step.averages import Averages
from optd_server.engine.step.conditioning import bounded, bounds_of, settings_of
from optd_server.engine.step.norms import norms_of_step
from optd_server.optim.clipping import Clipped, Floats
from optd_server.store.gradients import Gradient
from optd_server.store.recent_changes import ChangedBySlab
from optd_server.store.versions import WeightSet
from optd_wire.values import WEIGHTS, GradientSummary, GroupNorms, PushResult


@dataclass(slots=True)
class Work:
    """A piece of arithmetic, and about how many elements it works on."""

    elements: int
    run: Callable[[], None]


@dataclass(slots=True)
class Applied:
    """The results of an event that are not part of the new state."""

    replies: tuple[PushResult, ...] = ()
    """The replies to the event's pushes, in the same order."""
    gradient: Gradient | None = None
    """The gradient that the step used, if the event was a step."""
    changes: ChangedBySlab | None = None
    """The elements of the weights that a step changed; None: all of them, or none."""


Applying: TypeAlias = Generator[Work, None, Applied]
NOTHING_MORE = Applied()


def apply(state: JobState, event: Event, compute: Compute) -> Applied:
    """Change a state by one event. The resulting bits do not depend on `compute`. Blocks for the arithmetic.

    After an exception the state may be half-changed and must not be used.
    """
    steps = applying(state, event, compute)
    while True:
        try:
            next(steps).run()
        except StopIteration as end:
            found: Applied = end.value
            return found


def applying(state: JobState, event: Event, compute: Compute) -> Applying:
    """Do the same as `apply` in pieces. The caller must run each piece that it yields before asking for the next."""
    return _HANDLERS[type(event)](state, event, compute)


def relocate(state: JobState, weights: WeightSet) -> None:
    """Move a state's weights to other memory. This needs no event, because no number changes."""
    state.weights = weights


def create(event: Created) -> JobState:
    """Return the state of a newly created job."""
    spec = event.spec
    groups = Groups.of(find_algorithm(spec.algorithm), spec)
    options = initial(spec.options)
    averages = Averages()
    averages.configure(options.options)
    return JobState(
        name=spec.name,
        id=event.id,
        created_wall=event.wall,
        created_with=len(groups),
        ephemeral=spec.ephemeral,
        policy=event.policy,
        first_policy=event.policy,
        groups=groups,
        weights=WeightSet.holding(event.weights),
        averages=averages,
        options=options,
        members=Members(forgotten_epoch=event.first_epoch),
    )


# Steps


def _stepped(state: JobState, event: Stepped, compute: Compute) -> Applying:
    _put_in_force(state, event.edits)
    groups, version = state.groups, state.version + 1
    gradient, clipped = event.gradient, Clipped(event.norm, event.is_clipped, _floats(event.norms))
    if gradient is None:
        gradient, clipped = yield from _accumulated(state, compute)
    if event.begins:
        state.search.abandon()
    into = WeightSet(groups.extents) if compute.into is None else compute.into
    step = Step(groups, state.version, state.weights, gradient, into, compute.lacks, state.search, event.loss)
    yield Work(groups.cost(step.elements), lambda: step.take(compute))
    due = state.averages.due(version, state.options.options) if step.is_done else []
    if due:
        yield Work(groups.cost(groups.elements), partial(state.averages.update, due, into.buffers, compute.threads))
    norms: tuple[GroupNorms, ...] = ()
    if clipped.norms is not None:
        norms = yield from _norms(state, step, clipped, into, compute)
    if state.accumulation.count:
        state.accumulation.clear()
    state.gradients = _counted(state, event.nonfinite, clipped)
    state.version, state.weights, state.stepped_wall = version, into, event.wall
    _note(state, event.edits)
    for fragment in {mark.fragment for mark in event.pushes} - {0}:
        state.fragments.note(fragment, version)
    pushes, unfinished, changed = len(event.pushes), not step.is_done, clipped.changed
    replies = [
        _reply(state, mark, pushes, unfinished=unfinished, clipped=changed, norms=norms if mark.norms else ())
        for mark in event.pushes
    ]
    return Applied(tuple(replies), step.gradient, step.changes)


def _floats(norms: tuple[float, ...] | None) -> Floats | None:
    return None if norms is None else np.asarray(norms, np.float64)


def _accumulated(state: JobState, compute: Compute) -> Generator[Work, None, tuple[Gradient, Clipped]]:
    """Turn the accumulated rounds into the gradient of a step, in place, and clip it."""
    groups, settings = state.groups, settings_of(state.options)
    state.accumulation.fit(groups.extents)
    bounds = bounds_of(settings, groups.in_force.effective(state.version))
    found: list[tuple[Gradient, Clipped]] = []

    def work() -> None:
        gradient = finished(state.accumulation, None, None, groups.extents, settings.reduction, compute)
        clipped = Clipped(0.0, changed=False)
        if bounds is not None:
            clipped = bounded(gradient, groups.extents, bounds, settings.norm_type, len(groups), compute)
        found.append((gradient, clipped))

    yield Work(groups.cost(groups.elements), work)
    return found[0]


def _norms(
    state: JobState, step: Step, clipped: Clipped, into: WeightSet, compute: Compute
) -> Generator[Work, None, tuple[GroupNorms, ...]]:
    """Compute the norms of a step after it has been taken, before its weights become the current ones."""
    p, found = settings_of(state.options).norm_type, []
    assert clipped.norms is not None
    before, gradient = state.weights.buffers, clipped.norms

    def work() -> None:
        found.append(norms_of_step(state.groups, gradient, before, into.buffers, step.changes, p, compute))

    yield Work(state.groups.cost(step.elements), work)
    norms: tuple[GroupNorms, ...] = found[0]
    return norms


def _round_added(state: JobState, event: RoundAdded, compute: Compute) -> Applying:
    _put_in_force(state, event.edits)
    accumulation, groups = state.accumulation, state.groups
    accumulation.fit(groups.extents)
    work = partial(accumulation.add, event.gradient, event.weights, event.row_weights, compute)
    yield Work(groups.cost(groups.elements), work)
    _note(state, event.edits)
    state.gradients = _counted(state, event.nonfinite, None)
    return Applied(
        tuple(_reply(state, mark, len(event.pushes), accumulated=accumulation.count) for mark in event.pushes)
    )


def _skipped(state: JobState, event: Skipped, _: Compute) -> Applying:
    _put_in_force(state, event.edits)
    _note(state, event.edits)
    is_skipped = not event.nothing_pending
    counted = _counted(state, event.nonfinite, None)
    state.gradients = replace(counted, skipped_steps=counted.skipped_steps + is_skipped)
    pushes, pending, nothing = len(event.pushes), state.accumulation.count, event.nothing_pending
    replies = [
        _reply(state, mark, pushes, accumulated=pending, skipped=is_skipped, nothing_pending=nothing)
        for mark in event.pushes
    ]
    return Applied(tuple(replies))
    yield  # makes it a generator, as all handlers are


def _counted(state: JobState, nonfinite: Iterable[NonfiniteEntries], clipped: Clipped | None) -> GradientSummary:
    """Return the job's gradient counters with those of an event added."""
    counts = state.gradients
    for each in nonfinite:
        counts = replace(
            counts,
            nonfinite=counts.nonfinite + each.count,
            nonfinite_unix_ms=int(each.wall * 1000),
            nonfinite_version=state.version,
            nonfinite_worker=each.worker,
            nonfinite_parameter=each.parameter,
        )
    if clipped is not None and (clipped.changed or clipped.norm != counts.norm):
        counts = replace(counts, clipped_steps=counts.clipped_steps + clipped.changed, norm=clipped.norm)
    return counts


def _reply(
    state: JobState,
    mark: Mark,
    pushes: int,
    *,
    accumulated: int = 0,
    skipped: bool = False,
    nothing_pending: bool = False,
    unfinished: bool = False,
    clipped: bool = False,
    norms: tuple[GroupNorms, ...] = (),
) -> PushResult:
    """Return the reply to one of the `pushes` that the event settles, and store it in the worker's mark."""
    groups = state.groups
    is_part_of_next = bool(accumulated and not skipped)
    reply = PushResult(
        version=state.job_version,
        applied_version=0 if nothing_pending else state.version + is_part_of_next,
        staleness=mark.staleness,
        repeat=False,
        options=tuple(groups.options) if mark.known_revision != state.revision else (),
        accumulated=accumulated,
        skipped=skipped,
        unfinished=unfinished,
        clipped=clipped,
        norms=norms,
        effective=groups.in_force.scheduled(state.version),
        pushes=pushes,
    )
    state.members.mark(mark, reply, state.position)
    state.applied_pushes += not (skipped or mark.flush)
    return reply


# Options, groups, state


def _put_in_force(state: JobState, edits: OptionEdits) -> None:
    """Put into force the option changes that an event carries. `_note` tells of them once the event is applied."""
    if not edits:
        return
    _change_options(state, edits)
    state.revision += 1


def _change_options(state: JobState, edits: OptionEdits) -> None:
    state.groups.change_options(edits.groups)
    if edits.job is not None:
        state.options = edits.job
        state.averages.configure(edits.job.options)


def _note(state: JobState, edits: OptionEdits) -> None:
    """Add option changes to the history, which readers see at once: no sooner than the snapshot of the event."""
    if edits:
        state.history.add(edits.changes)


def _options_changed(state: JobState, event: OptionsChanged, _: Compute) -> Applying:
    _put_in_force(state, event.edits)
    _note(state, event.edits)
    return NOTHING_MORE
    yield


def _policy_changed(state: JobState, event: PolicyChanged, _: Compute) -> Applying:
    state.policy = event.policy
    state.history.add(event.changes)
    return NOTHING_MORE
    yield


def _group_added(state: JobState, event: GroupAdded, compute: Compute) -> Applying:
    copies = state.averages.copies(event.weights) if compute.copies is None else compute.copies
    state.averages.adopt(copies)
    state.weights.buffers.adopt(event.weights)
    state.groups.add([event.spec], state.version)
    state.revision += 1
    return NOTHING_MORE
    yield


def _state_replaced(state: JobState, event: StateReplaced, compute: Compute) -> Applying:
    groups = state.groups
    into = WeightSet(groups.extents) if compute.into is None else compute.into
    into.publications.clear()
    yield Work(groups.cost(groups.elements), lambda: replace_state(state, event, into.buffers))
    _change_options(state, event.edits)
    _note(state, event.edits)
    state.revision += 1
    state.weights = into
    if any(each.field == WEIGHTS for each in event.fields):
        state.written_revision = state.revision
    member = state.members.find(event.worker)
    if event.write_id and member is not None:
        member.write_id, member.written = event.write_id, (tuple(groups.options), state.job_version)
    return NOTHING_MORE


# Workers, and the job as a whole


def _joined(state: JobState, event: Joined, _: Compute) -> Applying:
    state.members.join(event.worker, event.epoch, event.session_id, state.position)
    return NOTHING_MORE
    yield


def _left(state: JobState, event: Left, _: Compute) -> Applying:
    state.members.end(event.worker, event.epoch, LEFT)
    return NOTHING_MORE
    yield


def _expired(state: JobState, event: Expired, _: Compute) -> Applying:
    state.members.end(event.worker, event.epoch, event.why)
    return NOTHING_MORE
    yield


def _fenced(state: JobState, event: Fenced, _: Compute) -> Applying:
    state.members.fence(event.epochs, event.why)
    state.search.abandon()
    state.revision += event.revisions
    return NOTHING_MORE
    yield


def _deleted(state: JobState, _: Deleted, __: Compute) -> Applying:
    state.release_all()
    return NOTHING_MORE
    yield


_HANDLERS: dict[type[Any], Callable[[JobState, Any, Compute], Applying]] = {
    Stepped: _stepped,
    RoundAdded: _round_added,
    Skipped: _skipped,
    OptionsChanged: _options_changed,
    PolicyChanged: _policy_changed,
    GroupAdded: _group_added,
    StateReplaced: _state_replaced,
    Joined: _joined,
    Left: _left,
    Expired: _expired,
    Fenced: _fenced,
    Deleted: _deleted,
}
"""The handler of each kind of event. `Created` has none, because no state exists before it: see `create`."""
