"""bfloat16: the upper half of a float32."""

import numpy as np

from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import CHUNK, INFINITY, MAGNITUDE, Array
from optd_wire.encodings.halves import Halves
from optd_wire.encodings.kernels import kernels
from optd_wire.v1.tensor_pb2 import ENCODING_BFLOAT16

# From here on, the nearest bfloat16 is infinity.
OVERFLOW = 0x7F7F8000
QUIET = 0x0040


class BFloat16(Halves):
    """8 bits of exponent, as float32 has, and 7 of fraction.

    Error: at most 2**-8 of the number, or 2**-134 if it is below float32's normal numbers. float64 numbers are rounded
    to float32 first.
    """

    name = "bfloat16"
    dtype = DTYPES["bfloat16"]
    number = ENCODING_BFLOAT16
    largest = float.fromhex("0x1.fep127")

    def _shorten(self, bits: Array, halves: Array) -> int:
        compiled = kernels()
        return shorten(bits, halves) if compiled is None else int(compiled.bfloat16_shorten(bits, halves))

    def _widen(self, halves: Array, bits: Array) -> None:
        compiled = kernels()
        if compiled is None:
            widen(halves, bits)
        else:
            compiled.bfloat16_widen(halves, bits)


def shorten(bits: Array, halves: Array) -> int:
    """`Halves._shorten` with numpy."""
    lost = 0
    scratch = np.empty(min(CHUNK, bits.size), np.uint32)
    for start in range(0, bits.size, CHUNK):
        given, result = bits[start : start + CHUNK], halves[start : start + CHUNK]
        work = scratch[: given.size]
        np.bitwise_and(given, MAGNITUDE, out=work)
        special = work.max() >= OVERFLOW
        if special:
            finite = work[work < INFINITY].max(initial=0)
            lost = max(lost, int(finite) if finite >= OVERFLOW else 0)
        # Adds half a unit less one, and one more if the upper half is odd, so that ties go to even.
        np.right_shift(given, 16, out=work)
        work &= 1
        work += 0x7FFF
        work += given
        work >>= 16
        result[:] = work
        if special:
            nan = (given & MAGNITUDE) > INFINITY
            result[nan] = (given[nan] >> 16) | QUIET
    return lost


def widen(halves: Array, bits: Array) -> None:
    """`Halves._widen` with numpy."""
    np.left_shift(halves, 16, out=bits, dtype=np.uint32)
