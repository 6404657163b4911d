"""The arrays that were registered, and whether new weights can still be written to them."""

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.params.groups import PARAMS, ParamGroup
from optd_wire.errors import DtypeMismatch, NotAnArray, ShapeMismatch, StructureMismatch


class RegisteredArrays:
    """The arrays of groups as they were registered. Scripts may change them in place, or put others into the lists."""

    def __init__(self, groups: Sequence[ParamGroup]) -> None:
        self._groups: list[list[_Registered]] = []
        for group in groups:
            self.add(group)

    def add(self, group: ParamGroup) -> None:
        """Notes the arrays of a group that has been registered."""
        self._groups.append([(array, array.shape, array.dtype) for array in group.arrays])

    def check(self, groups: Sequence[ParamGroup], dicts: Sequence[Mapping[str, Any]]) -> None:
        """Raises what is wrong, if a call could not write weights to the arrays of `groups` afterwards.

        `dicts` are what `param_groups` has now. Raises `StructureMismatch`, `ShapeMismatch`, `DtypeMismatch` or
        `NotAnArray`.
        """
        if len(dicts) != len(groups):
            what = "param_groups (add_param_group() adds one, and none can be taken away)"
            raise StructureMismatch(what=what, expected=f"the {len(groups)} groups that are registered", got=len(dicts))
        for index, (group, given, known) in enumerate(zip(groups, dicts, self._groups, strict=True)):
            own = [array for array, _, _ in known]
            if len(given[PARAMS]) != len(own) or not all(map(is_, given[PARAMS], own)):
                what = f"param_groups[{index}][{PARAMS!r}] (group {group.name!r})"
                expected = f"the {len(own)} arrays that were registered"
                got = "others: write into these, or construct another optimizer"
                raise StructureMismatch(what=what, expected=expected, got=got)
            for name, registered in zip(group.names, known, strict=True):
                _check(name, *registered)


_Registered = tuple[Array, tuple[int, ...], np.dtype[Any]]


def _check(name: str, array: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if array.shape != shape:
        raise ShapeMismatch(what="array", parameter=name, expected=shape, got=array.shape)
    if array.dtype != dtype:
        raise DtypeMismatch(what="array", parameter=name, expected=dtype.name, got=array.dtype.name)
    if not array.flags.writeable:
        got = "one that has become read-only: set its flags.writeable"
        raise NotAnArray(what=f"parameter {name!r}", wanted="an array that can be written to", got=got)
