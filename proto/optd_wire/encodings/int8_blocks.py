"""The blocks of int8: their size, their scales, and the numpy loops that fill and read them."""

import numpy as np

from optd_wire.encodings.base import CHUNK, FLOAT32, INFINITY, MAGNITUDE, Array

BLOCK = 256
LARGEST = np.float32(127)
# A little less than 1 / 127, so that 127 times the scale of the largest float32 is finite.
SCALE = np.float32(float.fromhex("0x1.0203fcp-7"))


def blocks_of(count: int) -> int:
    """The number of blocks of `count` elements; the last block may be shorter."""
    return -(-count // BLOCK)


def shrink_blocks(values: Array, bits: Array, scales: Array, integers: Array) -> None:
    """Fills `scales` and `integers` with numpy; `bits` are those of the float32 `values`."""
    for start in range(0, values.size, CHUNK):
        stop = min(start + CHUNK, values.size)
        starts = np.arange(0, stop - start, BLOCK)
        largest = np.maximum.reduceat(bits[start:stop] & MAGNITUDE, starts)
        finite = largest < INFINITY
        found = np.where(finite, largest.view(FLOAT32) * SCALE, np.float32(np.nan))
        scales[start // BLOCK : start // BLOCK + starts.size] = found
        divisors = np.where(found > 0, found, np.float32(1))
        counts = np.diff(starts, append=stop - start)
        part = np.where(np.repeat(finite, counts), values[start:stop], np.float32(0))
        part /= np.repeat(divisors, counts)
        np.rint(part, out=part)
        integers[start:stop] = np.clip(part, -LARGEST, LARGEST, out=part)


def grow_blocks(scales: Array, integers: Array, out: Array) -> None:
    """Fills the float32 `out` with numpy."""
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, out.size, CHUNK):
            part = out[start : start + CHUNK]
            part[:] = integers[start : start + CHUNK]
            part *= np.repeat(scales[start // BLOCK :][: blocks_of(part.size)], BLOCK)[: part.size]
