"""The arrays of several groups, with their layout in the flat buffers of the job."""

from collections.abc import Sequence

from optd.params.flat_view import Array, FlatView
from optd.params.groups import ParamGroup
from optd.transport.numbers import Source


class GroupArrays:
    """Groups in the job's order; `batch_bytes` bounds the frames of one message.

    The first of them may be the group of `buffers`, which the owner of the others does not see.
    """

    def __init__(self, groups: Sequence[ParamGroup], batch_bytes: int, buffers: ParamGroup | None = None) -> None:
        self.first = 0 if buffers is None else 1
        """The index of the first group of parameters."""
        self.groups = [*groups] if buffers is None else [buffers, *groups]
        self._batch_bytes = batch_bytes
        self.view = self._view_of(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def of_parameters(self) -> list[ParamGroup]:
        """The groups without that of the buffers."""
        return self.groups[self.first :]

    @property
    def arrays(self) -> list[list[Array]]:
        """The arrays by group and place."""
        return [group.arrays for group in self.groups]

    def source_of(self, group: ParamGroup) -> Source:
        """A source of the arrays of a group that will be the next one."""
        return self._view_of([group], first_group=len(self)).source([group.arrays])

    def source_at(self, index: int, arrays: Sequence[Array]) -> Source:
        """A source of arrays for one of the groups alone."""
        return self._view_of([self.groups[index]], first_group=index).source([arrays])

    def append(self, group: ParamGroup) -> None:
        """Adds a group, as the last one."""
        self.groups.append(group)
        self.view = self._view_of(self.groups)

    def pop(self) -> None:
        """Drops the last group."""
        self.groups.pop()
        self.view = self._view_of(self.groups)

    def _view_of(self, groups: Sequence[ParamGroup], first_group: int = 0) -> FlatView:
        specs = [group.spec().parameters for group in groups]
        return FlatView(specs, first_group=first_group, batch_bytes=self._batch_bytes)
