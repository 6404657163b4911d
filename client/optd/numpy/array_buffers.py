"""Arrays by name as the buffers of an optimizer, as `optd.registration.buffers` takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optd.params.flat_view import Array
from optd.registration.buffers import NO_BUFFERS, Holder
from optd_wire.errors import NotAnArray


def holder_of(given: Mapping[str, Any] | None) -> Holder:
    """The buffers that an optimizer is given; raises `NotAnArray`."""
    if given is None:
        return NO_BUFFERS
    if not isinstance(given, Mapping):
        raise NotAnArray(what="buffers", wanted="a dict of numpy arrays by name", got=type(given).__name__)
    for name, array in given.items():
        if not isinstance(array, np.ndarray) or not array.flags.writeable:
            got = "a read-only one" if isinstance(array, np.ndarray) else type(array).__name__
            raise NotAnArray(what=f"buffer {name!r}", wanted="a numpy array that can be written to", got=got)
    return ArrayBuffers(given) if given else NO_BUFFERS


class ArrayBuffers:
    """Arrays by name, written in place."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.names = [str(name) for name in arrays]
        self._arrays = list(arrays.values())

    def read(self) -> list[Array]:
        """The arrays."""
        return self._arrays

    def write(self, place: int, array: Array) -> None:
        """Replaces the content of one array."""
        self._arrays[place][...] = array

    def marks(self) -> list[Any]:
        """Nothing: writes to arrays are not counted."""
        return [None] * len(self._arrays)
