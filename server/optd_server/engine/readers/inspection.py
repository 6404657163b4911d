"""Reports on the parameters of a group, with statistics of their numbers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from optd_server.engine.job import Job
from optd_server.engine.readers.looking import Provenance, look
from optd_server.engine.readers.state import numbers_of
from optd_server.optim import statistics
from optd_wire.values import FieldStatistics, GroupSummary, JobVersion, Options, ParameterReport, Statistics

MAX_BINS = 1024


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A report on a group and its parameters, all of one version."""

    group: GroupSummary
    version: JobVersion
    parameters: list[ParameterReport]


async def inspect_group(
    job: Job, name: str, parameter: str, *, with_statistics: bool, bins: int, patience: Callable[[], Awaitable[None]]
) -> tuple[GroupReport, Provenance]:
    """Describes the parameters of a group, or one of them; raises `UnknownGroup` or `UnknownParameter`.

    Statistics are computed between two steps, so all of them are of one version. If the last gradient is not kept, the
    call waits for the next step, at most as long as `patience()` takes: see `looking.look`.
    """
    group = job.state.groups.index(name, job.name)
    if parameter:
        job.state.groups.locate(group, parameter)
    elements = job.state.groups.layouts[group].count if with_statistics else 0

    def work() -> GroupReport:
        reports = _reports(job, group, parameter, bins if with_statistics else None)
        return GroupReport(job.snapshots.current.summary(group), job.version, reports)

    if not with_statistics:
        return await job.between_steps(elements, work), Provenance(None)
    return await look(job, elements, work, patience, lent=True)


def _reports(job: Job, group: int, parameter: str, bins: int | None) -> list[ParameterReport]:
    layout = job.state.groups.layouts[group]
    reports: dict[int, ParameterReport] = {}
    for index, segment in enumerate(layout.segments):
        state = job.state.groups.state(group, index)
        for place, member in enumerate(segment.members):
            info = layout.parameters[member]
            if parameter in ("", info.name):
                fields = () if bins is None else _statistics(job, group, index, place, bins)
                overrides = _overrides(job, group, member)
                reports[member] = ParameterReport(info, int(state.steps[place]), fields, overrides)
    return [reports[member] for member in sorted(reports)]


def _overrides(job: Job, group: int, member: int) -> Options:
    """Returns the options of a parameter that differ from those of its group."""
    by_name, common = job.state.groups.in_force.by_name(group), job.state.groups.options[group].options
    own = common if by_name is None else by_name[member]
    return {name: value for name, value in own.items() if name not in common or common[name] != value}


def _statistics(job: Job, group: int, index: int, place: int, bins: int) -> tuple[FieldStatistics, ...]:
    return tuple(
        FieldStatistics(field, _plain(statistics.summarize(array, bins=bins)))
        for field, array in numbers_of(job, group, index, place)
    )


def _plain(found: statistics.Statistics) -> Statistics:
    return Statistics(
        count=found.count,
        zeros=found.zeros,
        nonfinite=found.nonfinite,
        min=found.min,
        max=found.max,
        mean=found.mean,
        std=found.std,
        norm=found.norm,
        histogram_edges=tuple(float(edge) for edge in found.edges),
        histogram_counts=tuple(int(count) for count in found.histogram),
    )
