"""Leaves of a tree as numpy arrays, and how their owner gets new weights: in place, or as new leaves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.params.overlap import overlaps_itself
from optd_wire.dtypes import check_dtype
from optd_wire.errors import NotAnArray

Renew = Callable[[Array], Any]
"""Makes a new leaf from an array of new weights. It must copy: the array will be overwritten."""


def read_parameter(name: str, leaf: Any) -> tuple[Array, Renew | None]:
    """A parameter as a writable numpy array, and how to renew its leaf; None if leaf and array share memory.

    A numpy array must be writable, because its owner expects the weights in it, and its elements must not overlap.
    Another leaf with a buffer, `__array__` or `__dlpack__` is written in place if these give access to its own memory,
    as with `array.array`. If not, as with arrays of JAX, a new leaf of its type replaces it. Raises `NotAnArray` or
    `UnsupportedDtype`.
    """
    what, array = f"parameter {name!r}", as_array(leaf)
    if array is None:
        raise NotAnArray(what=what, wanted="an array", got=type(leaf).__name__)
    if isinstance(leaf, np.ndarray) and not leaf.flags.writeable:
        raise NotAnArray(what=what, wanted="an array that can be written to", got="a read-only one: give a copy of it")
    if not array.flags.c_contiguous and overlaps_itself(array.shape, array.strides, array.itemsize):
        got = "one whose elements overlap in memory: give a copy of it"
        raise NotAnArray(what=what, wanted="an array whose elements do not share memory", got=got)
    renew = None if _is_its_memory(leaf, array) else _renewal(leaf)
    check_dtype(name, array.dtype.name if array.dtype.isnative else str(array.dtype))
    return (array if renew is None else np.array(array, order="C")), renew


def as_array(leaf: Any) -> Array | None:
    """A leaf as a numpy array, which may be a view of its memory; None if it is no array."""
    if isinstance(leaf, np.ndarray):
        return leaf
    try:
        if hasattr(leaf, "__array__") or _has_buffer(leaf):
            array: Array = np.asarray(leaf)
        elif hasattr(leaf, "__dlpack__"):
            array = np.from_dlpack(leaf)
        else:
            return None
    except (BufferError, RuntimeError, TypeError, ValueError):  # for instance a tensor that requires a gradient
        return None
    return array


def _has_buffer(leaf: Any) -> bool:
    if isinstance(leaf, bytes | bytearray):
        return False
    try:
        memoryview(leaf).release()
    except TypeError:
        return False
    return True


def _is_its_memory(leaf: Any, array: Array) -> bool:
    """Whether the array is the leaf's own memory, and not a copy."""
    if array is leaf:
        return True
    again = as_array(leaf)
    return array.flags.writeable and again is not None and np.may_share_memory(array, again)


def _renewal(leaf: Any) -> Renew:
    if isinstance(leaf, np.generic):
        return lambda array: array.copy()[()]
    if not hasattr(leaf, "__array_namespace__"):
        return lambda array: array.copy()
    # The array API standard, which JAX follows, defines how to make another array of the same kind.
    namespace, device = leaf.__array_namespace__(), leaf.device
    return lambda array: namespace.asarray(array, device=device, copy=True)
