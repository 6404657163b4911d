"""float16: IEEE 754 binary16."""

import numpy as np

from optd_wire.dtypes import DTYPES
from optd_wire.encodings.base import CHUNK, FLOAT32, INFINITY, MAGNITUDE, Array
from optd_wire.encodings.halves import Halves
from optd_wire.encodings.kernels import kernels
from optd_wire.v1.tensor_pb2 import ENCODING_FLOAT16

# 65520: from here on, the nearest float16 is infinity.
OVERFLOW = 0x477FF000
SIGN = 0x8000
NAN = 0x7E00


class Float16(Halves):
    """5 bits of exponent and 10 of fraction.

    Error: at most 2**-11 of the number, or 2**-25 if it is below 2**-14. float64 numbers are rounded to float32 first.
    """

    name = "float16"
    dtype = DTYPES["float16"]
    number = ENCODING_FLOAT16
    largest = 65504.0

    def _shorten(self, bits: Array, halves: Array) -> int:
        compiled = kernels()
        return shorten(bits, halves) if compiled is None else int(compiled.float16_shorten(bits, halves))

    def _widen(self, halves: Array, bits: Array) -> None:
        compiled = kernels()
        if compiled is None:
            widen(halves, bits)
        else:
            compiled.float16_widen(halves, bits)


def shorten(bits: Array, halves: Array) -> int:
    """`Halves._shorten` with numpy."""
    lost = 0
    for start in range(0, bits.size, CHUNK):
        given, result = bits[start : start + CHUNK], halves[start : start + CHUNK]
        magnitudes = given & MAGNITUDE
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            result[:] = given.view(FLOAT32).astype("<f2").view("<u2")
        if magnitudes.max() >= OVERFLOW:
            finite = magnitudes[magnitudes < INFINITY].max(initial=0)
            lost = max(lost, int(finite) if finite >= OVERFLOW else 0)
            nan = magnitudes > INFINITY
            # The payload of a converted NaN differs between processors, so write one of our own.
            result[nan] = ((given[nan] >> 16) & SIGN) | NAN
    return lost


def widen(halves: Array, bits: Array) -> None:
    """`Halves._widen` with numpy."""
    for start in range(0, halves.size, CHUNK):
        given, result = halves[start : start + CHUNK], bits[start : start + CHUNK]
        with np.errstate(invalid="ignore"):
            result.view(FLOAT32)[:] = given.view("<f2")
        nan = (given & 0x7FFF) > 0x7C00
        if nan.any():
            result[nan] = ((given[nan].astype(np.uint32) & SIGN) << 16) | INFINITY | (NAN & 0x03FF) << 13
