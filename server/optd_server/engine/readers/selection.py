"""Turns names of groups and parameters into flat ranges or rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optd_server.engine.job import Job
from optd_server.store.flat import Array
from optd_server.store.versions import Snapshot
from optd_wire.errors import InvalidRequest, UnknownParameter
from optd_wire.row_frames import Ids, check_ids
from optd_wire.values import FlatRange


def ranges_of(job: Job, names: Iterable[str], parameters: Iterable[str]) -> tuple[FlatRange, ...] | None:
    """Returns the ranges of these groups and parameters in flat order, or None for everything if nothing is named.

    Raises `UnknownGroup` or `UnknownParameter`.
    """
    groups, wanted = job.state.groups, set(parameters)
    whole = {groups.index(name, job.name) for name in names}
    if not wanted and not whole:
        return None
    ranges: list[FlatRange] = []
    for index, layout in enumerate(groups.layouts):
        if index in whole:
            ranges.extend(FlatRange(index, segment.offset, segment.count) for segment in layout.segments)
            wanted.difference_update(parameter.name for parameter in layout.parameters)
            continue
        found = [parameter for parameter in layout.parameters if parameter.name in wanted]
        ranges.extend(FlatRange(index, p.offset, p.size) for p in sorted(found, key=lambda p: p.offset))
        wanted.difference_update(parameter.name for parameter in found)
    if wanted:
        raise UnknownParameter(where=f"job {job.name!r}", parameter=min(wanted)[:200])
    return tuple(ranges)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows `ids` of a parameter, and where it lies. The first dimension of a parameter counts its rows."""

    group: int
    parameter: int
    segment: int
    start: int
    """Where the parameter begins within its segment."""
    rows: int
    columns: int
    ids: Ids

    def of(self, snapshot: Snapshot) -> Array:
        """Returns all rows of the parameter in a snapshot, shaped [rows, columns]; valid while the snapshot is held."""
        return self.among(snapshot.arrays(self.group))

    def among(self, segments: Sequence[Array]) -> Array:
        """Returns all rows of the parameter from the segments of its group, shaped [rows, columns]."""
        segment = segments[self.segment]
        return segment[self.start : self.start + self.rows * self.columns].reshape(self.rows, self.columns)


def table_of(job: Job, group: str, parameter: str, ids: Ids) -> Table:
    """Selects the rows `ids` of a parameter. If `group` is empty, the parameter is searched in all groups.

    Raises `UnknownGroup`, `UnknownParameter`, `RowOutOfRange`, or `InvalidRequest` if the parameter is a scalar.
    """
    groups = job.state.groups
    searched = [groups.index(group, job.name)] if group else range(len(groups))
    for index in searched:
        layout = groups.layouts[index]
        for number, info in enumerate(layout.parameters):
            if info.name != parameter:
                continue
            if not info.shape:
                raise InvalidRequest(problem=f"parameter {parameter!r} has no rows, as its shape is ()")
            check_ids(ids, parameter, info.shape[0])
            segment = next(place for place, part in enumerate(layout.segments) if number in part.members)
            start = info.offset - layout.segments[segment].offset
            columns = info.size // info.shape[0] if info.size else 0
            return Table(index, number, segment, start, info.shape[0], columns, ids)
    where = f"group {group!r} of job {job.name!r}" if group else f"job {job.name!r}"
    raise UnknownParameter(where=where, parameter=parameter[:200])
