"""Reads gradients as people pass them, in the structure of the params, into lists by group and place."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optd.exchange.row_gradients import Given, RowGradient, are_rows
from optd.params import trees
from optd.params.array_like import as_array
from optd.params.flat_view import Array
from optd.params.groups import PARAMS, ParamGroup, is_pair
from optd_wire.dtypes import computed_dtype
from optd_wire.errors import (
    DtypeMismatch,
    NotAnArray,
    ShapeMismatch,
    StructureMismatch,
    UnknownParameter,
)

Row = list[Any]


def read_gradients(gradients: Any, groups: Sequence[ParamGroup], *, in_groups: bool) -> list[list[Given]]:
    """Gradients by group and place, from the structure that the parameters were given in.

    Gradients mirror the structure of `params`. A dict or dataclass may leave entries out; None stands for no gradient
    of the parameter or subtree in its place. One dict, or pairs, may name the gradients of all groups; a list may give
    them one by one. With `in_groups` an entry of a list may be what one group takes. `(ids, rows)` in the place of an
    array is the gradient of some of its rows. Raises `StructureMismatch`, `UnknownParameter`, `ShapeMismatch`,
    `DtypeMismatch`, or what is wrong with rows.
    """
    plain = _plain(gradients, groups)
    return plain or check_gradients(_rows(_by_name(gradients, groups, in_groups), groups), groups)


def _plain(gradients: Any, groups: Sequence[ParamGroup]) -> list[list[Given]] | None:
    """A fast path: the result for a dict with a numpy array for each parameter, all fitting; None for all else.

    For many small parameters it takes an eighth of the time.
    """
    if type(gradients) is not dict or len(gradients) != sum(len(group.names) for group in groups):
        return None
    rows: list[list[Given]] = []
    for group in groups:
        row: list[Given] = []
        for name, array in zip(group.names, group.arrays, strict=True):
            found = gradients.get(name)
            if type(found) is not np.ndarray or found.shape != array.shape or found.dtype != array.dtype:
                return None
            row.append(found)
        rows.append(row)
    return rows


def check_gradients(rows: Sequence[Sequence[Any]], groups: Sequence[ParamGroup]) -> list[list[Given]]:
    """Checks gradients by group and place against their parameters. Raises as `read_gradients` does."""
    return [
        [_check_gradient(name, array, gradient) for name, array, gradient in zip(g.names, g.arrays, row, strict=True)]
        for g, row in zip(groups, rows, strict=True)
    ]


def read_weights(weights: Any, groups: Sequence[ParamGroup], *, in_groups: bool) -> list[list[Array | None]]:
    """Reads weights, which are given as gradients are, in the dtypes of the parameters; None: not given.

    Raises `StructureMismatch`, `UnknownParameter`, `NotAnArray`, `ShapeMismatch` or `DtypeMismatch`.
    """
    try:
        rows = _rows(_by_name(weights, groups, in_groups), groups)
    except StructureMismatch as error:
        what = str(error.values["what"]).replace("gradients", "weights")
        raise StructureMismatch(**{**error.values, "what": what}) from None
    return [
        [_check_weights(name, array, given) for name, array, given in zip(g.names, g.arrays, row, strict=True)]
        for g, row in zip(groups, rows, strict=True)
    ]


def _check_weights(name: str, array: Array, given: Any) -> Array | None:
    found = None if given is None else as_array(given)
    if found is None:
        if given is None:
            return None
        raise NotAnArray(what=f"weights of parameter {name!r}", wanted="an array or None", got=type(given).__name__)
    if found.shape != array.shape:
        raise ShapeMismatch(what="weights", parameter=name, expected=array.shape, got=found.shape)
    if found.dtype != array.dtype:
        raise DtypeMismatch(what="weights", parameter=name, expected=array.dtype.name, got=found.dtype.name)
    return np.asarray(found)


def _by_name(gradients: Any, groups: Sequence[ParamGroup], in_groups: bool) -> list[tuple[str, Any]]:
    if not isinstance(gradients, list | tuple) or trees.is_namedtuple(gradients):
        return list(trees.collect(gradients, trees.merge([group.inner for group in groups])))
    if gradients and all(map(is_pair, gradients)):
        return _by_name(dict(gradients), groups, in_groups)
    if in_groups and len(gradients) == len(groups):
        parts = zip(gradients, groups, strict=True)
        return [found for entry, group in parts for found in _of_group(entry, group)]
    entries = [path for group in groups for path in group.inner[""]]
    inner = trees.merge([group.inner for group in groups])
    are_groups = in_groups and all(isinstance(entry, Mapping | list) for entry in gradients)
    if are_groups and not any(path in inner for path in entries):
        raise StructureMismatch(what="gradients", expected=f"{len(groups)} groups", got=len(gradients))
    if len(gradients) != len(entries):
        raise StructureMismatch(what="gradients", expected=f"{len(entries)} entries", got=len(gradients))
    parts = zip(entries, gradients, strict=True)
    return [found for path, entry in parts for found in trees.collect(_unpaired(path, entry), inner, path)]


def _unpaired(name: str, entry: Any) -> Any:
    return entry[1] if is_pair(entry) and entry[0] == name else entry


def _of_group(entry: Any, group: ParamGroup) -> list[tuple[str, Any]]:
    """Gradients of one group: as its dict, or in the structure of its params."""
    if isinstance(entry, Mapping) and PARAMS in entry and PARAMS not in group.inner[""]:
        entry = entry[PARAMS]
    if isinstance(entry, list) and entry and all(map(is_pair, entry)):
        entry = dict(entry)
    inner = group.inner
    single = len(inner) == len(inner[""]) == 1
    if single and (trees.children(entry) is None or (type(entry) is tuple and len(entry) == 2)):
        return [(inner[""][0], entry)]  # a single parameter needs no list around it
    return list(trees.collect(entry, inner, what=f"gradients of group {group.name!r}"))


def _rows(found: Sequence[tuple[str, Any]], groups: Sequence[ParamGroup]) -> list[Row]:
    named = dict(found)
    if len(named) != len(found):
        names = [name for name, _ in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise StructureMismatch(what="gradients", expected=f"one entry for parameter {twice!r}", got="two")
    rows = [[named.pop(name, None) for name in group.names] for group in groups]
    if named:
        raise UnknownParameter(where="this optimizer", parameter=next(iter(named)))
    return rows


def _check_gradient(name: str, array: Array, gradient: Any) -> Given:
    if gradient is None:
        return None
    if isinstance(gradient, RowGradient):
        return gradient
    if are_rows(gradient):
        return RowGradient.of(name, array, gradient)
    found = as_array(gradient)
    if found is None:
        wanted, got = "an array, (ids, rows) or None", type(gradient).__name__
        raise NotAnArray(what=f"gradient of parameter {name!r}", wanted=wanted, got=got)
    if found.shape != array.shape:
        raise ShapeMismatch(what="gradient", parameter=name, expected=array.shape, got=found.shape)
    if found.dtype != array.dtype and found.dtype != computed_dtype(array.dtype):
        raise DtypeMismatch(what="gradient", parameter=name, expected=array.dtype.name, got=found.dtype.name)
    return np.asarray(found)
