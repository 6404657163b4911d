"""States as something to compare: every number and text of them, to the bit."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from optd_server.engine.enumeration import enumerated
from optd_server.engine.state import JobState
from optd_wire.values import PushResult

Frozen = dict[str, Any]
"""By path, what is there, in a form that has its type, its bits and its shape, and that equals only its like."""


def frozen(state: JobState) -> Frozen:
    """A state as it is now. Later changes of the state do not show."""
    return {path: _frozen(leaf) for path, leaf in enumerated(state).items()}


def _frozen(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        array = np.asarray(leaf)
        return array.dtype.name, array.shape, array.tobytes()
    return type(leaf).__name__, repr(leaf)  # so a NaN is one, and -0.0 is not 0.0


def difference(one: Frozen, other: Frozen) -> str:
    """What differs, for people; empty if nothing does."""
    only = [path for path in {**one, **other} if (path in one) != (path in other)]
    if only:
        return f"parts of one alone: {only[:10]}"
    for mine, theirs in zip(filter(_is_ordered, one), filter(_is_ordered, other), strict=True):
        if mine != theirs:
            return f"the parts are in another order: {mine}, {theirs}"
    lines = [f"{path}: {_text(one[path])} != {_text(other[path])}" for path in one if one[path] != other[path]]
    return "\n".join(lines[:20])


def as_text(value: Any) -> str:
    """A plain value, with all that it holds: equal texts are of equal values, and a NaN equals a NaN."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_text(value[key])}' for key in sorted(value))}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(as_text, value))})"
    return f"{type(value).__name__} {value!r}"


def bare(reply: PushResult) -> PushResult:
    """A reply without what depends on when it leaves."""
    return replace(reply, version=replace(reply.version, durable_version=0), repeat=False)


def _is_ordered(path: str) -> bool:
    """Whether the order in which a part comes means something: that of options and counts by name does not."""
    return not {"options", "defaults", "counts", "last_changed"} & set(path.split(".")[:-1])


def _text(leaf: Any) -> str:
    if len(leaf) == 3:
        name, shape, data = leaf
        if name != "bfloat16":
            return f"{name}{shape} {np.frombuffer(data, name)[:8].tolist()}"
    return repr(leaf)[:200]
