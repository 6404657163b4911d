"""Decides what a request leads to: an event, a reply that is already known, or a refusal. Changes no state."""

from collections.abc import Sequence

from optd_server.engine.events import NO_EDITS, Mark, OptionEdits
from optd_server.engine.membership.members import Member
from optd_server.engine.options.history import Origin, changes_of_group, changes_of_job, origins
from optd_server.engine.options.job_options import plan_update
from optd_server.engine.state import JobState
from optd_server.engine.step.staleness import check_staleness as check_limit
from optd_wire.errors import FutureVersion, InvalidRequest, LossMissing, SequenceGap, StaleEvaluation
from optd_wire.values import GroupUpdate, JobUpdate, PushHeader, PushResult

Updates = Sequence[tuple[GroupUpdate, Origin]]
"""Changes of options in order, each with its origin."""


def known_reply(member: Member, header: PushHeader) -> PushResult | None:
    """Return the reply to a push that has already been applied, or None for the next one; raise `SequenceGap`."""
    if member.reply is not None and header.sequence == member.sequence:
        return member.reply
    if header.sequence != member.sequence + 1:
        raise SequenceGap(
            worker=header.worker,
            sequence=header.sequence,
            expected=member.sequence + 1,
            last=member.sequence,
        )
    return None


def check_base(state: JobState, header: PushHeader) -> None:
    """Raise `FutureVersion` if a gradient was computed on a version that the job has not reached."""
    if header.base_version > state.version:
        raise FutureVersion(
            worker=header.worker, base_version=header.base_version, job=state.name, version=state.version
        )


def staleness_of(state: JobState, header: PushHeader) -> int:
    """Return how many steps a push's part of the model has had since the version of its gradient."""
    return state.fragments.since(header.fragment, header.base_version, state.version)


def check_fragment(state: JobState, header: PushHeader, *, accumulates: bool) -> None:
    """Raise `InvalidRequest` for a push of a fragment if rounds are accumulated: a step is of one fragment, or all."""
    if header.fragment and accumulates:
        pushes = f"worker {header.worker!r} pushes fragment {header.fragment}"
        problem = f"job {state.name!r} accumulates rounds, and {pushes}: set accumulate=1, or push the whole model"
        raise InvalidRequest(problem=problem)


def check_staleness(state: JobState, header: PushHeader) -> None:
    """Raise `StaleGradient` if a gradient is staler than the policy allows."""
    check_limit(state.policy, header, staleness_of(state, header), state.version)


def check_evaluation(state: JobState, header: PushHeader) -> None:
    """Raise `LossMissing`, `StaleEvaluation` or `InvalidRequest` if the algorithm cannot use such an evaluation."""
    algorithm = state.groups.iterative
    if header.flush:
        return
    if algorithm is None:
        if header.loss is not None:
            names = ", ".join(each.name for each in state.groups.distinct_algorithms)
            take = "take" if " " in names else "takes"
            raise InvalidRequest(problem=f"{names} {take} gradients alone, and a push has a loss")
        return
    if header.loss is None:
        raise LossMissing(algorithm=algorithm.name)
    if header.base_version != state.version:
        evaluated = f"of version {header.base_version}"
    elif header.known_revision < state.written_revision:
        evaluated = "before they were written anew"
    else:
        return
    raise StaleEvaluation(
        algorithm=algorithm.name, job=state.name, version=state.version, worker=header.worker, evaluated=evaluated
    )


def group_edits(state: JobState, updates: Updates) -> OptionEdits:
    """Return the edits that these updates make to options of groups; raise the problem of an update."""
    if not updates:
        return NO_EDITS
    groups = state.groups
    planned = groups.plan_updates([update for update, _ in updates], state.name, state.version)
    if not planned:
        return NO_EDITS
    changes = [
        change
        for index, changed in planned
        for change in changes_of_group(groups.options[index], changed, origins(updates, changed.group))
    ]
    return OptionEdits(tuple(planned), None, tuple(changes))


def job_edits(state: JobState, update: JobUpdate, origin: Origin) -> OptionEdits:
    """Return the edits that an update makes to the options of the job as a whole; raise its problem."""
    planned = plan_update(state.groups.distinct_algorithms, state.options, update, state.version)
    if planned is state.options:
        return NO_EDITS
    return OptionEdits((), planned, tuple(changes_of_job(state.options, planned, origin)))


def mark_of(state: JobState, header: PushHeader, checksum: int, *, tells_norms: bool) -> Mark:
    """Return the mark of a push that an event settles at the state's version; `checksum` is that of its content."""
    return Mark(
        header.worker,
        header.epoch,
        header.sequence,
        staleness_of(state, header),
        header.known_revision,
        header.flush,
        tells_norms or header.norms,
        checksum,
        header.fragment,
    )
