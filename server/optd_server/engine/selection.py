"""Names of groups and parameters to the flat ranges that they are."""

from collections.abc import Iterable

from optd_server.engine.groups import Groups
from optd_wire.errors import UnknownParameter
from optd_wire.values import FlatRange


def ranges_of(
    groups: Groups, job: str, names: Iterable[str], parameters: Iterable[str]
) -> tuple[FlatRange, ...] | None:
    """The ranges of these groups and of these parameters, in order; None where nothing is named, which is everything.

    Raises `UnknownGroup` or `UnknownParameter`.
    """
    wanted = set(parameters)
    whole = {groups.index(name, job) for name in names}
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
        raise UnknownParameter(where=f"job {job!r}", parameter=min(wanted)[:200])
    return tuple(ranges)
