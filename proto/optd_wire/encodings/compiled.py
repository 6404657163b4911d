"""The conversions as compiled loops. Only this module imports numba; `kernels` imports it if numba is there.

The signatures are explicit, because views into a message are neither writable nor aligned. No fastmath: each loop gives
the same bits as its numpy version.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from optd_wire.encodings.int8_blocks import SCALE

U16, U32, F32, I8 = types.uint16, types.uint32, types.float32, types.int8


def _read(item: Any) -> Any:
    return types.Array(item, 1, "C", readonly=True, aligned=False)


def _write(item: Any) -> Any:
    return types.Array(item, 1, "C", aligned=False)


def _compile(signature: Any) -> Any:
    def compiled(function: Any) -> Any:
        try:
            return numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:  # numba found no folder for its cache
            return numba.njit(signature, nogil=True, error_model="numpy")(function)

    return compiled


@_compile(U32(_read(U32), _write(U16)))
def bfloat16_shorten(bits, halves):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.bfloat16.shorten`."""
    lost = np.uint32(0)
    for i in range(bits.size):
        given = bits[i]
        magnitude = given & np.uint32(0x7FFFFFFF)
        up = (given + np.uint32(0x7FFF) + ((given >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (given >> np.uint32(16)) | np.uint32(0x40)
        halves[i] = quiet if magnitude > np.uint32(0x7F800000) else up
        over = (magnitude >= np.uint32(0x7F7F8000)) & (magnitude < np.uint32(0x7F800000))
        lost = max(lost, magnitude if over else np.uint32(0))
    return lost


@_compile(types.void(_read(U16), _write(U32)))
def bfloat16_widen(halves, bits):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.bfloat16.widen`."""
    for i in range(halves.size):
        bits[i] = np.uint32(halves[i]) << np.uint32(16)


@_compile(U32(_read(U32), _write(U16)))
def float16_shorten(bits, halves):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.float16.shorten`."""
    lost = np.uint32(0)
    one = np.uint32(1)
    for i in range(bits.size):
        given = bits[i]
        sign = (given >> np.uint32(16)) & np.uint32(0x8000)
        magnitude = given & np.uint32(0x7FFFFFFF)
        # A normal half: a smaller bias of the exponent, a fraction that is 13 bits shorter.
        moved = magnitude - np.uint32(0x38000000)
        normal = (moved + np.uint32(0x0FFF) + ((moved >> np.uint32(13)) & one)) >> np.uint32(13)
        # A subnormal half: the fraction with its hidden bit, in units of 2**-24.
        shift = min(np.uint32(126) - min(magnitude >> np.uint32(23), np.uint32(112)), np.uint32(25))
        fraction = (magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        tiny = (fraction + ((one << (shift - one)) - one) + ((fraction >> shift) & one)) >> shift
        half = tiny if magnitude < np.uint32(0x38800000) else normal
        half = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else half
        half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else half
        halves[i] = sign | half
        over = (magnitude >= np.uint32(0x477FF000)) & (magnitude < np.uint32(0x7F800000))
        lost = max(lost, magnitude if over else np.uint32(0))
    return lost


@_compile(types.void(_read(U16), _write(U32)))
def float16_widen(halves, bits):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.float16.widen`."""
    for i in range(halves.size):
        given = np.uint32(halves[i])
        sign = (given & np.uint32(0x8000)) << np.uint32(16)
        magnitude = given & np.uint32(0x7FFF)
        normal = (magnitude << np.uint32(13)) + np.uint32(0x38000000)
        # A subnormal half is a small integer times 2**-24; as a float32 that is exact.
        tiny = np.float32(np.float32(np.int32(magnitude)) * np.float32(2.0**-24)).view(np.uint32)
        wide = tiny if magnitude < np.uint32(0x0400) else normal
        wide = np.uint32(0x7F800000) if magnitude >= np.uint32(0x7C00) else wide
        wide = np.uint32(0x7FC00000) if magnitude > np.uint32(0x7C00) else wide
        bits[i] = sign | wide


@_compile(types.void(_read(F32), _read(U32), _write(F32), _write(I8)))
def int8_shrink(values, bits, scales, integers):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.int8_blocks.shrink_blocks`."""
    for block in range((values.size + 255) // 256):
        start = block * 256
        block_values, block_bits = values[start : start + 256], bits[start : start + 256]
        block_integers = integers[start : start + 256]
        largest = np.uint32(0)
        for i in range(block_bits.size):
            largest = max(largest, block_bits[i] & np.uint32(0x7FFFFFFF))
        if largest >= np.uint32(0x7F800000):
            scales[block] = np.float32(np.nan)
            block_integers[:] = 0
            continue
        scale = np.uint32(largest).view(np.float32) * SCALE
        scales[block] = scale
        divisor = scale if scale > 0 else np.float32(1)
        for i in range(block_values.size):
            whole = np.rint(block_values[i] / divisor)
            whole = np.float32(127) if whole > np.float32(127) else whole
            whole = np.float32(-127) if whole < np.float32(-127) else whole
            block_integers[i] = np.int8(np.int32(whole))


@_compile(types.void(_read(F32), _read(I8), _write(F32)))
def int8_grow(scales, integers, out):  # type: ignore[no-untyped-def]
    """See `optd_wire.encodings.int8_blocks.grow_blocks`."""
    for block in range((out.size + 255) // 256):
        start = block * 256
        scale, block_integers, block_out = scales[block], integers[start : start + 256], out[start : start + 256]
        for i in range(block_out.size):
            block_out[i] = np.float32(block_integers[i]) * scale
