"""The interface of an encoding.

A new encoding takes a file with a subclass, a value of the contract's enum, and a line in `registry`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from optd_wire.errors import EncodingOverflow, FrameLength

Array = npt.NDArray[Any]
Buffer = bytes | memoryview | Array

# Elements that are converted at a time if there is an intermediate result, so that it stays in the processor's cache.
CHUNK = 1 << 14
# The most elements of one frame: bounds the copy that encodes it, and the time that it blocks others.
MOST_ELEMENTS = 1 << 20
FLOAT32 = np.dtype("<f4")
# The bits of a float32 without its sign, and those of infinity. A NaN has a larger magnitude.
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000


class Encoding(ABC):
    """A way to write a range of elements as bytes. Has no state, so several threads may use it.

    Arrays are one-dimensional, contiguous, and of a dtype that parameters may have. An encoding that `converts` carries
    every such dtype: it rounds numbers to float32 first, and decodes them into the dtype of the range. A number that is
    not finite decodes to one that is not finite, so that the receiver's checks still see it.
    """

    name: ClassVar[str]
    """Its name for people; in the contract, `ENCODING_` and this name in upper case."""
    number: ClassVar[int]
    """The value of the contract's enum."""
    dtype: ClassVar[np.dtype[Any] | None] = None
    """The dtype of a payload that is an array in memory, whose numbers come back bit by bit; else None."""
    converts: ClassVar[bool] = True
    """Whether it also carries numbers of dtypes other than its own."""
    carries_weights: ClassVar[bool] = True
    """Whether it may carry weights and state. Gradients are always allowed."""
    leaves_out: ClassVar[bool] = False
    """Whether it loses so much that a sender of gradients should add the loss to the next gradient."""
    width: ClassVar[str]
    """The bytes of an element, in words, for error messages."""

    def keeps(self, dtype: np.dtype[Any]) -> bool:
        """Whether numbers of `dtype` come back bit by bit."""
        # When numpy compares dtypes, None means float64.
        return self.dtype is not None and self.dtype == dtype

    @abstractmethod
    def bytes_of(self, count: int) -> int:
        """The length of a payload of `count` elements; its upper bound if it depends on the numbers."""

    def elements_in(self, length: int) -> int:
        """The number of elements, at least 1, for which a frame's payload has about `length` bytes."""
        return max(1, min(MOST_ELEMENTS, length * CHUNK // self.bytes_of(CHUNK)))

    def fits(self, count: int, length: int) -> bool:
        """Whether a payload of `count` elements may have `length` bytes."""
        return length == self.bytes_of(count)

    def check_length(self, group: int, count: int, length: int) -> None:
        """Raises `FrameLength` unless the length `fits`. Takes constant time, whatever the frame declares."""
        if not self.fits(count, length):
            raise FrameLength(group=group, count=count, width=self.width, got=length)

    def check(self, payload: Buffer, count: int) -> None:  # noqa: B027 - for most encodings the length says it all
        """Raises `MalformedMessage` if a payload cannot be decoded although its length fits."""

    @abstractmethod
    def encode(self, values: Array) -> Buffer:
        """The payload of `values`: their own memory, not a copy, if it keeps their dtype.

        Raises `EncodingOverflow` for a finite number that is too large.
        """

    @abstractmethod
    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Writes the numbers of a payload of `out.size` elements into `out`, which may have any float dtype.

        The caller has checked the length. Raises what `check` raises, before it writes anything.
        """


def bytes_in(values: Array) -> Array:
    """The bytes of a contiguous array, not copied; needed because Python cannot read the buffer of a bfloat16 array."""
    return values.reshape(-1).view(np.uint8)


def rounded(name: str, values: Array) -> Array:
    """`values` as float32: themselves or a copy. Raises `EncodingOverflow` if a finite number does not fit."""
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
