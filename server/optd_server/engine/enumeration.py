"""Lists every part of a `JobState` by name, for programs that compare, copy or store states.

A part of an unknown type is an error, so nothing can be added to the state and forgotten here.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.engine.options.groups import Groups
from optd_server.engine.state import JobState
from optd_server.engine.step.accumulation import Accumulation
from optd_server.engine.step.averages import Average
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.iterative import Searches
from optd_server.optim.segment import SegmentState
from optd_server.store.flat import FlatBuffers
from optd_server.store.rows import RowPlace, Rows
from optd_server.store.versions import WeightSet

Leaf: TypeAlias = npt.NDArray[Any] | np.generic | bool | int | float | str | None
"""A value, or an array, which the state still owns."""


def enumerated(state: JobState) -> dict[str, Leaf]:
    """Return every number and text of a state, by a path such as `groups.options.0.options.lr`.

    Memory without meaningful content is left out: state that a parameter does not have, averages that nothing has
    entered, and sums of no rounds. Raise
    TypeError for a part of an unknown type.
    """
    return dict(_leaves("", state))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Leaf]]:
    if value is None or isinstance(value, (np.ndarray, np.generic, bool, int, float, str)):
        yield path, value
        return
    for name, part in _parts(value).items():
        yield from _leaves(f"{path}.{name}" if path else name, part)


@singledispatch
def _parts(value: Any) -> Mapping[str, Any]:
    """Return the parts of a value by name, and its type: a policy may have no other part."""
    if is_dataclass(value):
        return {"type": type(value).__name__, **{field.name: getattr(value, field.name) for field in fields(value)}}
    raise TypeError(f"a state holds {value!r}, and nothing says what it consists of")


@_parts.register
def _(value: Algorithm) -> Mapping[str, Any]:
    return {"name": value.name}


@_parts.register
def _(value: Groups) -> Mapping[str, Any]:
    slabs = [state for _, _, _, state in value.slabs()]
    return {"algorithm": value.algorithm, "defaults": value.defaults, "groups": value.kept(), "slabs": slabs}


@_parts.register
def _(value: WeightSet) -> Mapping[str, Any]:
    return {"buffers": value.buffers}


@_parts.register
def _(value: FlatBuffers) -> Mapping[str, Any]:
    return {"slabs": value.slabs}


@_parts.register
def _(value: SegmentState) -> Mapping[str, Any]:
    state = {
        name: array[np.repeat(value.started[name], value.layout_of(name).sizes)] for name, array in value.state.items()
    }
    return {"steps": value.steps, "state": state, "started": value.started}


@_parts.register
def _(value: Average) -> Mapping[str, Any]:
    return {"updates": value.updates, **({"buffers": value.buffers} if value.updates else {})}


@_parts.register
def _(value: Accumulation) -> Mapping[str, Any]:
    return {"count": value.count, **(_sums(value) if value.count else {})}


@_parts.register
def _(value: Searches) -> Mapping[str, Any]:
    return {"state": value.state}


@_parts.register
def _(value: Rows) -> Mapping[str, Any]:
    return {"member": value.place.member, "ids": value.ids, "values": value.values}


@_parts.register
def _(value: dict) -> Mapping[str, Any]:  # type: ignore[type-arg]
    return {_key(key): part for key, part in value.items()}


@_parts.register(list)
@_parts.register(tuple)
@_parts.register(deque)
def _(value: Any) -> Mapping[str, Any]:
    return {"count": len(value), **{str(number): part for number, part in enumerate(value)}}


def _sums(value: Accumulation) -> dict[str, Any]:
    """Return the sums of the parameters that a round has had, with their weights.

    The memory of other parameters, and of groups that no round has had yet, holds nothing meaningful.
    """
    used = [number for number, row in enumerate(value.totals) if any((totals > 0).any() for totals in row)]
    totals_of = value.totals[: max(used, default=-1) + 1]
    sums = []
    for extent, slabs, row in zip(value.sums.extents, value.sums.slabs, totals_of, strict=False):
        for slab, array, totals in zip(extent.slabs, slabs, row, strict=True):
            sums.append(array[np.repeat(totals > 0, slab.sizes)])
    return {"sums": sums, "totals": totals_of, "rows": value.rows}


def _key(key: Any) -> str:
    if isinstance(key, RowPlace):
        return f"{key.group}/{key.member}"
    return "/".join(key) if isinstance(key, tuple) else str(key)
