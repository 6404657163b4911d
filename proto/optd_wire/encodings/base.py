"""What every encoding is. A new one is a file with a subclass, a value of the contract's enum, a line in `registry`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from optd_wire.errors import EncodingOverflow, FrameLength

Array = npt.NDArray[Any]
Buffer = bytes | memoryview | Array

# Elements that are worked on at a time where an intermediate result is needed: it stays in the processor's cache.
CHUNK = 1 << 14
# Of a frame: bounds what is copied to encode it, and what is held up by it.
MOST_ELEMENTS = 1 << 20
FLOAT32 = np.dtype("<f4")


class Encoding(ABC):
    """A way to write a range of elements as bytes. Has no state; safe to use from several threads.

    Arrays are one-dimensional, contiguous, and of a dtype that parameters may have. An encoding that `converts`
    carries all of them: numbers are rounded to float32 first, and read back into whatever the range's dtype is. A
    number that is not finite is not finite when it is read, so that checks on the other side still see it.
    """

    name: ClassVar[str]
    """As people write it; `ENCODING_` and this in upper case is the name in the contract."""
    number: ClassVar[int]
    """The value of the contract's enum."""
    dtype: ClassVar[np.dtype[Any] | None] = None
    """Where a payload is an array as it lies in memory: its dtype, whose numbers come back bit by bit."""
    converts: ClassVar[bool] = True
    """Whether it carries numbers of other dtypes than its own, too."""
    carries_weights: ClassVar[bool] = True
    """Whether weights and state may be written so; gradients always may."""
    leaves_out: ClassVar[bool] = False
    """Whether it leaves out so much that a sender of gradients should add it to the next one."""
    width: ClassVar[str]
    """What an element takes, in words."""

    def keeps(self, dtype: np.dtype[Any]) -> bool:
        """Whether numbers of `dtype` come back bit by bit."""
        # numpy takes None for float64 where it compares dtypes.
        return self.dtype is not None and self.dtype == dtype

    @abstractmethod
    def bytes_of(self, count: int) -> int:
        """The length of a payload of `count` elements; the most that it may be where that depends on the numbers."""

    def elements_in(self, length: int) -> int:
        """How many elements a frame may have so that its payload has about `length` bytes; at least 1."""
        return max(1, min(MOST_ELEMENTS, length * CHUNK // self.bytes_of(CHUNK)))

    def fits(self, count: int, length: int) -> bool:
        """Whether a payload of `length` bytes may be one of `count` elements, as far as the length tells."""
        return length == self.bytes_of(count)

    def check_length(self, group: int, count: int, length: int) -> None:
        """Raises `FrameLength` unless the length `fits`. Takes no time, whatever is declared."""
        if not self.fits(count, length):
            raise FrameLength(group=group, count=count, width=self.width, got=length)

    def check(self, payload: Buffer, count: int) -> None:  # noqa: B027 - most need no more than the length
        """Raises `MalformedMessage` where a payload of a fitting length cannot be decoded all the same."""

    @abstractmethod
    def encode(self, values: Array) -> Buffer:
        """The payload of `values`; of those that it keeps their own memory, not a copy.

        Raises `EncodingOverflow` for a finite number that is too large.
        """

    @abstractmethod
    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Writes the numbers of a payload of `out.size` elements to `out`, straight, whatever float dtype it has.

        The length of the payload has been checked. Raises what `check` raises, and writes nothing then.
        """


def bytes_in(values: Array) -> Array:
    """The memory of a contiguous array. Arrays of bfloat16 have no buffer that Python could read."""
    return values.reshape(-1).view(np.uint8)


def rounded(name: str, values: Array) -> Array:
    """`values` as float32: themselves, or a copy. Raises `EncodingOverflow` where a finite number does not fit."""
    if values.dtype == FLOAT32:
        return values
    if values.itemsize < FLOAT32.itemsize:
        return values.astype(FLOAT32)
    with np.errstate(over="ignore"):
        result: Array = values.astype(FLOAT32)
    lost = np.isinf(result) & np.isfinite(values)
    if lost.any():
        largest = np.abs(values[lost]).max()
        raise EncodingOverflow(encoding=name, bound=float(np.finfo(FLOAT32).max), value=float(largest))
    return result
