"""Buffers of a model, such as running statistics, which travel with a job as values beside its parameters.

They are the first group of the job, named "buffers". Its algorithm `assign` makes the mean of what a round pushes the
new weights; without rounds the last push counts. `param_groups` do not show that group, so schedulers and state dicts
see what they see without it.

Integers and bools travel as float64. Open `Buffers` first; `Registration` calls it.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from optd.options.group_options import GROUP_OPTIONS
from optd.params.flat_view import Array, ArraysByGroup, OptionalArraysByGroup, same_bits
from optd.params.groups import ParamGroup
from optd_wire.dtypes import DTYPES
from optd_wire.errors import InvalidRequest, NotAnArray
from optd_wire.values import GroupInfo

BUFFERS = "buffers"
_ASSIGN = "assign"
LARGEST = 1 << 44
"""The largest magnitude of an integer. The float64 mean of 256 equal ones is off by less than one half, which rounding
undoes."""
_SERVED = frozenset(DTYPES.values())
_WANTED = f"an array of {', '.join(DTYPES)}, of integers or of bools"


class Holder(Protocol):
    """What holds the buffers: arrays, or the tensors of a model."""

    @property
    def names(self) -> Sequence[str]:
        """Their names, in an order that all workers share."""

    def read(self) -> list[Array]:
        """What each holds now. Raises what prevents that, such as another shape than the registered one."""

    def write(self, place: int, array: Array) -> None:
        """Replaces the content of one buffer, in its dtype."""

    def marks(self) -> list[Any]:
        """For each buffer something that changes when it is written to, as far as that can be known."""


class NoBuffers:
    """Holds none."""

    names: Sequence[str] = ()

    def read(self) -> list[Array]:
        """Returns none."""
        return []

    def write(self, place: int, array: Array) -> None:
        """Is never called."""

    def marks(self) -> list[Any]:
        """Returns none."""
        return []


NO_BUFFERS: Holder = NoBuffers()


class Buffers:
    """The buffers of one optimizer, and their group in the job.

    Methods take and return rows as `Registration` has them for its groups: one row, or none if there are no buffers.
    """

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        arrays = holder.read()
        for name, array in zip(holder.names, arrays, strict=True):
            if array.dtype not in _SERVED and array.dtype.kind not in "iub":
                raise NotAnArray(what=f"buffer {name!r}", wanted=_WANTED, got=f"one of {array.dtype.name}")
        self._dtypes = [array.dtype for array in arrays]
        self._held = [value.copy() for value in self._values()]
        """What the job has, as far as this worker knows; the arrays of the group."""
        self._own: ArraysByGroup = []
        """What the buffers held before they got the values of a job that existed."""
        self._marks: list[Any] = []

    @property
    def group(self) -> ParamGroup | None:
        """The group of the buffers; None if there are none."""
        if not self._held:
            return None
        # Options that the optimizer gives to all groups, such as clip_norm, are not for buffers.
        return ParamGroup(BUFFERS, list(self._holder.names), self._held, options=dict(GROUP_OPTIONS), algorithm=_ASSIGN)

    def nothing(self) -> OptionalArraysByGroup:
        """No value for any buffer."""
        return [[None] * len(self._held)] if self._held else []

    def everything(self) -> ArraysByGroup:
        """What the buffers hold now. Raises `InvalidRequest` for an integer that is too large."""
        return [self._values()] if self._held else []

    def changed(self) -> OptionalArraysByGroup:
        """As `everything`, but None for those that hold what the job has."""
        return [
            [None if same_bits(value, held) else value for value, held in zip(self._values(), self._held, strict=True)]
            for _ in self.nothing()
        ]

    def unchanged_by(self, groups: Collection[str], parameters: Collection[str]) -> list[int]:
        """The places of the buffers that a pull of some groups and parameters does not bring."""
        if not (groups or parameters) or BUFFERS in groups:
            return []
        return [place for place, name in enumerate(self._holder.names) if name not in parameters]

    def differing(self) -> list[int]:
        """The places of the buffers that have changed."""
        return [place for row in self.changed() for place, value in enumerate(row) if value is not None]

    def take(self, rows: OptionalArraysByGroup, but: Collection[int] = ()) -> None:
        """Puts what the job has into the buffers, except those at the places `but`; None leaves one as it is."""
        for row in rows:
            now = self._values()
            for place, (value, held) in enumerate(zip(row, self._held, strict=True)):
                if value is None:
                    continue
                if value is not held:
                    held[...] = value
                # A buffer that keeps its content is not written to: a graph that has saved it stays valid.
                if place not in but and not same_bits(held, now[place]):
                    self._holder.write(place, in_dtype(held, self._dtypes[place]))

    def note_attached(self, own: ArraysByGroup) -> None:
        """Notes that the buffers have just got the values of a job that existed, in the place of their `own`."""
        self._own, self._marks = own, self._holder.marks()

    def loaded(self) -> ArraysByGroup:
        """What belongs to a state that is loaded before the job is used: what was written since, else the own values.

        Loading a model writes to all of its buffers, possibly the values that they hold already.
        """
        marks = [now != before for now, before in zip(self._holder.marks(), self._marks, strict=True)]
        return [
            [
                value if is_written or not same_bits(value, held) else mine
                for value, held, mine, is_written in zip(self._values(), self._held, own, marks, strict=True)
            ]
            for own in self._own
        ]

    def _values(self) -> list[Array]:
        return [_as_float(name, array) for name, array in zip(self._holder.names, self._holder.read(), strict=True)]


def has_buffers(groups: Sequence[GroupInfo]) -> bool:
    """Whether a job with these groups was created with buffers."""
    return bool(groups) and (groups[0].options.group, groups[0].options.algorithm) == (BUFFERS, _ASSIGN)


def _as_float(name: str, array: Array) -> Array:
    if array.dtype.kind not in "iub":
        return array
    if array.dtype.itemsize > 4 and array.size:
        for extreme in map(int, (array.min(), array.max())):
            if abs(extreme) > LARGEST:
                problem = (
                    f"buffer {name!r} holds the integer {extreme}; buffers travel with a job up to a magnitude of "
                    "2**44, so that their means are exact: register it as not persistent, or leave buffers= out"
                )
                raise InvalidRequest(problem=problem)
    return array.astype(np.float64)


def in_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in a buffer's own dtype; the mean of integers that differ is rounded."""
    return values.copy() if values.dtype == dtype else np.asarray(np.rint(values)).astype(dtype)
