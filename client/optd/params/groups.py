"""What people pass as `params`, made uniform: groups of named arrays. For gradients see `exchange.read_gradients`."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from optd.params import trees
from optd.params.array_like import Renew, as_array, read_parameter
from optd.params.flat_view import Array
from optd.params.rules import are_rules, rules_text
from optd.schedules import Schedule, schedules_text
from optd_wire.errors import (
    DuplicateParameter,
    EmptyGroup,
    InvalidRequest,
    NotAnArray,
    ParameterInTwoGroups,
    SharedParameters,
    StructureMismatch,
)
from optd_wire.values import GroupSpec, Options, OptionValue, ParameterSpec, Single

PARAMS = "params"
NAME = "name"
ALGORITHM = "algorithm"
# Bounds on the search for memory that strided views share.
SHARING_WORK = 1000
PAIRS = 20


@dataclass(slots=True)
class ParamGroup:
    """One group as the caller gave it: its name, its parameters' names and arrays, its options, its algorithm."""

    name: str
    names: list[str] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    options: Options = field(default_factory=dict)
    renewals: list[Renew | None] = field(default_factory=list)
    """For each array how to make a new leaf, if the leaf that was given cannot be written to; else None."""
    outline: Any = None
    """The outline of the tree that the parameters were given in."""
    inner: trees.Paths = field(default_factory=dict)
    """The inner nodes of that tree."""
    algorithm: str = ""
    """The algorithm that the group names; empty if it has the default algorithm of its optimizer."""

    def spec(self) -> GroupSpec:
        """The group as it is registered."""
        parameters = tuple(
            ParameterSpec(name, tuple(array.shape), array.dtype.name)
            for name, array in zip(self.names, self.arrays, strict=True)
        )
        return GroupSpec(self.name, self.options, parameters, self.algorithm)


def read_groups(params: Any) -> tuple[list[ParamGroup], bool]:
    """Reads groups from a tree of arrays or a list of group dicts; returns also whether it was such a list.

    A list with a dict that has the key "params" is a list of group dicts. Raises `NotAnArray`,
    `UnsupportedDtype`, `EmptyGroup`, `DuplicateParameter`, `ParameterInTwoGroups`, `StructureMismatch` or
    `InvalidRequest`.
    """
    params = _listed(params)
    if params is None or isinstance(params, str | bytes | Set) or trees.children(params) is None:
        wanted = "a list, dict or other tree of arrays, or a list of group dicts"
        raise NotAnArray(what="params", wanted=wanted, got=type(params).__name__)
    in_groups = _is_plain_sequence(params) and any(map(_is_group, params))
    groups: list[ParamGroup] = []
    count = 0
    for index, group in enumerate(params if in_groups else [{PARAMS: params}]):
        groups.append(read_group(group, index, count))
        count += len(groups[-1].arrays)
    if not count:
        raise EmptyGroup(what="params")
    check_distinct(groups)
    return groups, in_groups


def _is_group(entry: Any) -> bool:
    return isinstance(entry, Mapping) and PARAMS in entry


def _is_plain_sequence(params: Any) -> bool:
    return isinstance(params, list | tuple) and not trees.is_namedtuple(params)


def _listed(params: Any) -> Any:
    """Params, with generators turned into lists."""
    iterable = isinstance(params, Iterable) and not isinstance(params, str | bytes | Set)
    return list(params) if iterable and trees.children(params) is None and as_array(params) is None else params


def read_group(group: Any, index: int, first_parameter: int) -> ParamGroup:
    """Reads a group from its dict; default names count groups from `index` and parameters from `first_parameter`.

    Parameters get the names of their pairs; in a plain list, or alone, `param0`, `param1`, …; in other trees their
    paths (see `optd.params.trees`). Raises as `read_groups`.
    """
    if not _is_group(group):
        got = type(group).__name__
        raise StructureMismatch(what=f"group {index}", expected="a dict with the key 'params'", got=got)
    options = {str(key): plain_option(value) for key, value in group.items() if key not in (PARAMS, NAME, ALGORITHM)}
    name = str(group.get(NAME, f"group{index}"))
    read = ParamGroup(name=name, options=options, algorithm=read_algorithm(group, name))
    for name, leaf in _read_tree(_listed(group[PARAMS]), read, first_parameter):
        array, renew = read_parameter(name, leaf)
        read.names.append(name)
        read.arrays.append(array)
        read.renewals.append(renew)
    return read


def read_algorithm(group: Mapping[str, Any], name: str) -> str:
    """The algorithm that a group's dict names; empty if it names none. Raises `InvalidRequest` if it is no name."""
    found = group.get(ALGORITHM)
    if not isinstance(found, str | None):
        problem = f"the algorithm of group {name!r} must be a name such as 'adamw', got {found!r}"
        raise InvalidRequest(problem=problem)
    return found or ""


def _read_tree(params: Any, read: ParamGroup, first_parameter: int) -> list[tuple[str, Any]]:
    """The leaves with their names; notes the structure in the group."""
    if trees.children(params) is None:
        read.outline, entries = trees.LEAF, [(f"param{first_parameter}", params)]
    elif _is_plain_sequence(params):
        read.outline = type(params)(_outline_of_entry(entry) for entry in params)
        entries = _named_entries(params, first_parameter)
    else:
        read.outline, entries = trees.outline(params), trees.children(params) or []
    read.inner = trees.paths_of(entries)
    leaves = [leaf for key, tree in entries for leaf in trees.leaves(tree, key)]
    for name, _ in leaves:
        if name in read.inner:
            raise StructureMismatch(what="params", expected=f"one entry at {name!r}", got="two")
    return leaves


def is_pair(entry: Any) -> bool:
    """Whether this is `(name, ...)`, as `named_parameters()` gives it."""
    return type(entry) is tuple and len(entry) == 2 and isinstance(entry[0], str)


def _outline_of_entry(entry: Any) -> Any:
    return (entry[0], trees.outline(entry[1])) if is_pair(entry) else trees.outline(entry)


def _named_entries(params: Sequence[Any], first_parameter: int) -> list[tuple[str, Any]]:
    """The entries of a list with their names: those of pairs, else places, or `param0` if all are arrays."""
    plain = not any(trees.children(entry) for entry in params if not is_pair(entry))
    return [
        entry if is_pair(entry) else (f"param{first_parameter + place}" if plain else str(place), entry)
        for place, entry in enumerate(params)
    ]


def check_distinct(groups: Sequence[ParamGroup], earlier: Sequence[ParamGroup] = ()) -> None:
    """Raises if an array or a name occurs twice."""
    holders: dict[int, tuple[str, str]] = {}
    for group in (*earlier, *groups):
        for name, array in zip(group.names, group.arrays, strict=True):
            held = holders.setdefault(id(array), (group.name, name))
            if held[0] != group.name:
                raise ParameterInTwoGroups(parameter=name, first=held[0], second=group.name)
            if held[1] != name:
                raise DuplicateParameter(group=group.name, first=held[1], second=name)
    check_apart([pair for group in (*earlier, *groups) for pair in zip(group.names, group.arrays, strict=True)])


def check_apart(arrays: Sequence[tuple[str, Array]]) -> None:
    """Raises `SharedParameters` if two of the named arrays share memory.

    If very many of them are interleaved views of one memory, only some pairs are compared.
    """
    spans = sorted(
        (*byte_bounds(array), place) for place, (_, array) in enumerate(arrays) if array.size and array.flags.writeable
    )
    near: list[tuple[int, int]] = []
    left = PAIRS * len(spans)
    for low, high, place in spans:
        near = [(end, other) for end, other in near if end > low]
        left -= len(near)
        if left < 0:
            return
        for _, other in near:
            if _share(arrays[other][1], arrays[place][1]):
                first, second = sorted((other, place))
                raise SharedParameters(first=arrays[first][0], second=arrays[second][0])
        near.append((high, place))


def _share(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=SHARING_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return False


def plain_option(value: Any) -> OptionValue:
    """An option's value in the contract's types: arrays and tensors of one element become numbers, schedules texts.

    Tuples may be any sequences, arrays or tensors. Numbers of float32 become `optd_wire.values.Single`.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return str(value)
    if are_rules(value):
        return rules_text(value, plain_option)
    if isinstance(value, Mapping):
        return schedules_text(value)
    plain = tuple(map(_number, value)) if isinstance(value, Sequence) else _number(value)
    # Anything else becomes text, so that the server's check can name it.
    return plain if isinstance(plain, bool | int | float | str | tuple) else repr(plain)[:80]


def _number(value: Any) -> Any:
    """The numbers of an array or a tensor, including 0-d arrays and numpy scalars; other values unchanged."""
    if not hasattr(value, "tolist"):
        return value
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if dtype in ("float16", "bfloat16"):
        return repr(value)[:80]  # torch would compute with it in 16 bits, which the server does not
    numbers = value.tolist()
    while isinstance(numbers, list) and len(numbers) == 1:
        (numbers,) = numbers
    single = dtype == "float32"
    if isinstance(numbers, list):
        return tuple(Single(each) if single and isinstance(each, float) else each for each in numbers)
    return Single(numbers) if single else numbers
