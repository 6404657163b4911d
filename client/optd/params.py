"""What people pass as `params` and as gradients, made uniform: groups of named arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optd.arrays import Array
from optd_wire.dtypes import check_dtype
from optd_wire.errors import (
    DtypeMismatch,
    DuplicateParameter,
    EmptyGroup,
    NotAnArray,
    ParameterInTwoGroups,
    ShapeMismatch,
    StructureMismatch,
    UnknownParameter,
)
from optd_wire.values import GroupSpec, Options, OptionValue, ParameterSpec

PARAMS = "params"
NAME = "name"


@dataclass(slots=True)
class ParamGroup:
    """One group as the caller gave it: its name, its parameters' names and arrays, its options."""

    name: str
    names: list[str] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    options: Options = field(default_factory=dict)

    def spec(self) -> GroupSpec:
        """What is registered for it."""
        parameters = tuple(
            ParameterSpec(name, tuple(array.shape), array.dtype.name)
            for name, array in zip(self.names, self.arrays, strict=True)
        )
        return GroupSpec(self.name, self.options, parameters)


def read_groups(params: Any, first_group: int = 0, first_parameter: int = 0) -> list[ParamGroup]:
    """Groups from a list of arrays, of `(name, array)` pairs or of group dicts, or from a dict of arrays.

    Names that are missing are `group0`, `group1`, … and `param0`, `param1`, … in the order of the whole job. Raises
    `NotAnArray`, `UnsupportedDtype`, `EmptyGroup`, `DuplicateParameter` or `ParameterInTwoGroups`.
    """
    if isinstance(params, Mapping):
        given: list[Any] = [{PARAMS: params}]
    elif isinstance(params, np.ndarray | str | bytes) or not isinstance(params, Iterable):
        raise NotAnArray(
            what="params",
            wanted="a list or dict of arrays, or a list of group dicts",
            got=type(params).__name__,
        )
    else:
        given = list(params)
        if not given:
            raise EmptyGroup(what="params")
        if not isinstance(given[0], Mapping):
            given = [{PARAMS: given}]
    groups: list[ParamGroup] = []
    count = first_parameter
    for index, group in enumerate(given, first_group):
        groups.append(_read_group(group, index, count))
        count += len(groups[-1].arrays)
    check_distinct(groups)
    return groups


def _read_group(group: Any, index: int, first_parameter: int) -> ParamGroup:
    if not isinstance(group, Mapping) or PARAMS not in group:
        raise StructureMismatch(
            what=f"group {index}", expected="a dict with the key 'params'", got=type(group).__name__
        )
    options = {str(key): plain_option(value) for key, value in group.items() if key not in (PARAMS, NAME)}
    read = ParamGroup(name=str(group.get(NAME, f"group{index}")), options=options)
    for place, (name, array) in enumerate(_pairs(group[PARAMS])):
        read.names.append(f"param{first_parameter + place}" if name is None else name)
        read.arrays.append(_check_array(read.names[-1], array))
    if not read.arrays:
        raise EmptyGroup(what=f"group {read.name!r}")
    return read


def _pairs(params: Any) -> Iterable[tuple[str | None, Any]]:
    if isinstance(params, Mapping):
        return [(str(name), array) for name, array in params.items()]
    if isinstance(params, np.ndarray):
        return [(None, params)]
    return [(str(entry[0]), entry[1]) if isinstance(entry, tuple) else (None, entry) for entry in params]


def _check_array(name: str, array: Any) -> Array:
    if not isinstance(array, np.ndarray):
        raise NotAnArray(what=f"parameter {name!r}", wanted="a numpy array", got=type(array).__name__)
    if not array.flags.writeable:
        raise NotAnArray(what=f"parameter {name!r}", wanted="an array that can be written to", got="a read-only one")
    check_dtype(name, array.dtype.name if array.dtype.isnative else str(array.dtype))
    return array


def check_distinct(groups: Sequence[ParamGroup], earlier: Sequence[ParamGroup] = ()) -> None:
    """Raises where an array or a name occurs twice."""
    holders: dict[int, tuple[str, str]] = {}
    for group in (*earlier, *groups):
        for name, array in zip(group.names, group.arrays, strict=True):
            held = holders.setdefault(id(array), (group.name, name))
            if held[0] != group.name:
                raise ParameterInTwoGroups(parameter=name, first=held[0], second=group.name)
            if held[1] != name:
                raise DuplicateParameter(group=group.name, first=held[1], second=name)


def plain_option(value: Any) -> OptionValue:
    """An option's value as the contract has it; arrays and tensors of one element become numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    plain = tuple(_number(entry) for entry in value) if isinstance(value, list | tuple) else _number(value)
    # What is no option at all is told as text, for the check to name it.
    return plain if isinstance(plain, bool | int | float | str | tuple) else repr(plain)[:80]


def _number(value: Any) -> Any:
    # numpy scalars, 0-d arrays and tensors all have item().
    return value.item() if hasattr(value, "item") else value


def read_gradients(gradients: Any, groups: Sequence[ParamGroup]) -> list[list[Array | None]]:
    """Gradients by group and place, from the structure that the parameters were given in.

    A dict by name may leave parameters out, and None stands for no gradient. Raises `StructureMismatch`,
    `UnknownParameter`, `ShapeMismatch` or `DtypeMismatch`.
    """
    if isinstance(gradients, Mapping):
        read = _read_named(gradients.items(), groups)
    else:
        read = _read_sequence(list(gradients), groups)
    return [
        [_check_gradient(name, array, gradient) for name, array, gradient in zip(g.names, g.arrays, row, strict=True)]
        for g, row in zip(groups, read, strict=True)
    ]


def _read_sequence(gradients: list[Any], groups: Sequence[ParamGroup]) -> list[list[Any]]:
    if gradients and all(isinstance(entry, tuple) and len(entry) == 2 for entry in gradients):
        return _read_named(gradients, groups)
    if gradients and all(isinstance(entry, Mapping | list | tuple) for entry in gradients):
        if len(gradients) != len(groups):
            raise StructureMismatch(what="gradients", expected=f"{len(groups)} groups", got=len(gradients))
        return [_read_one_group(entry, group) for entry, group in zip(gradients, groups, strict=True)]
    total = sum(len(group.arrays) for group in groups)
    if len(gradients) != total:
        raise StructureMismatch(what="gradients", expected=f"{total} entries", got=len(gradients))
    entries = iter(gradients)
    return [[next(entries) for _ in group.arrays] for group in groups]


def _read_named(gradients: Iterable[tuple[str, Any]], groups: Sequence[ParamGroup]) -> list[list[Any]]:
    named = dict(gradients)
    rows = [[named.pop(name, None) for name in group.names] for group in groups]
    if named:
        raise UnknownParameter(where="this optimizer", parameter=next(iter(named)))
    return rows


def _read_one_group(entry: Any, group: ParamGroup) -> list[Any]:
    if isinstance(entry, Mapping):
        entry = entry.get(PARAMS, entry)
    if isinstance(entry, Mapping):
        return _read_named(entry.items(), [group])[0]
    if len(entry) != len(group.arrays):
        raise StructureMismatch(
            what=f"gradients of group {group.name!r}", expected=f"{len(group.arrays)} entries", got=len(entry)
        )
    return list(entry)


def _check_gradient(name: str, array: Array, gradient: Any) -> Array | None:
    if gradient is None:
        return None
    if not isinstance(gradient, np.ndarray | np.generic):
        raise NotAnArray(
            what=f"gradient of parameter {name!r}",
            wanted="a numpy array or None",
            got=type(gradient).__name__,
        )
    if gradient.shape != array.shape:
        raise ShapeMismatch(what="gradient", parameter=name, expected=array.shape, got=gradient.shape)
    if gradient.dtype != array.dtype:
        raise DtypeMismatch(what="gradient", parameter=name, expected=array.dtype.name, got=gradient.dtype.name)
    return np.asarray(gradient)
