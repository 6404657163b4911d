"""The encodings that carry one dtype and change nothing: the payload is the array in memory."""

from typing import ClassVar

import numpy as np

from optd_wire.encodings.base import Array, Buffer, Encoding
from optd_wire.v1.tensor_pb2 import ENCODING_FLOAT32, ENCODING_FLOAT64


class _Exact(Encoding):
    dtype: ClassVar[np.dtype[np.floating]]
    itemsize: ClassVar[int]
    converts = False

    def bytes_of(self, count: int) -> int:
        """`itemsize` for each element."""
        return count * self.itemsize

    def encode(self, values: Array) -> Buffer:
        """`values` themselves."""
        return values

    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Copies the numbers."""
        out[:] = np.frombuffer(payload, self.dtype)


class Float32(_Exact):
    """IEEE 754 binary32. Error: none."""

    name = "float32"
    number = ENCODING_FLOAT32
    dtype = np.dtype("<f4")
    itemsize = 4
    width = "4 bytes"


class Float64(_Exact):
    """IEEE 754 binary64. Error: none."""

    name = "float64"
    number = ENCODING_FLOAT64
    dtype = np.dtype("<f8")
    itemsize = 8
    width = "8 bytes"
