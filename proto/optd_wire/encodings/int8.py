"""int8: blocks of integers with a scale each."""

import numpy as np

from optd_wire.encodings.base import CHUNK, FLOAT32, Array, Buffer, Encoding, rounded
from optd_wire.encodings.kernels import kernels
from optd_wire.v1.tensor_pb2 import ENCODING_INT8

BLOCK = 256
LARGEST = np.float32(127)
# A little less than 1 / 127, so that 127 times the scale of the largest float32 is finite.
SCALE = np.float32(float.fromhex("0x1.0203fcp-7"))
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000


class Int8(Encoding):
    """Integers in [-127, 127] times a scale: the largest magnitude of the block over 127.

    Error: at most 1/253 of the largest magnitude of the block, and 2**-142 where that is next to nothing. float64
    numbers are rounded to float32 first. A block with a NaN or an infinity is read as NaN throughout.
    """

    name = "int8"
    leaves_out = True
    number = ENCODING_INT8
    width = "1 byte, and 4 for every 256 of them"

    def bytes_of(self, count: int) -> int:
        """1 for each element and 4 for each block."""
        return count + 4 * blocks_of(count)

    def encode(self, values: Array) -> Buffer:
        """Rounds to nearest, to even where two are as near."""
        payload = np.empty(self.bytes_of(values.size), np.uint8)
        scales, integers = _parts(payload, values.size)
        compiled = kernels()
        shrink = shrink_blocks if compiled is None else compiled.int8_shrink
        step = max(1, values.size) if values.dtype == FLOAT32 else CHUNK
        for start in range(0, values.size, step):
            chunk = rounded(self.name, values[start : start + step])
            shrink(chunk, chunk.view(np.uint32), scales[start // BLOCK :], integers[start : start + step])
        return payload

    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Multiplies by the scales, in float32."""
        scales, integers = _parts(np.frombuffer(payload, np.uint8), out.size)
        compiled = kernels()
        grow = grow_blocks if compiled is None else compiled.int8_grow
        if out.dtype == FLOAT32:
            grow(scales, integers, out)
            return
        scratch = np.empty(min(CHUNK, out.size), FLOAT32)
        for start in range(0, out.size, CHUNK):
            chunk = out[start : start + CHUNK]
            grow(scales[start // BLOCK :], integers[start : start + CHUNK], scratch[: chunk.size])
            with np.errstate(over="ignore", invalid="ignore"):
                chunk[:] = scratch[: chunk.size]


def blocks_of(count: int) -> int:
    """How many blocks `count` elements make; the last may be shorter."""
    return -(-count // BLOCK)


def _parts(payload: Array, count: int) -> tuple[Array, Array]:
    split = 4 * blocks_of(count)
    return payload[:split].view("<f4"), payload[split:].view("i1")


def shrink_blocks(values: Array, bits: Array, scales: Array, integers: Array) -> None:
    """Fills scales and integers, by numpy; `bits` are those of the float32 `values`."""
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
    """Fills the float32 `out`, by numpy."""
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, out.size, CHUNK):
            part = out[start : start + CHUNK]
            part[:] = integers[start : start + CHUNK]
            part *= np.repeat(scales[start // BLOCK :][: blocks_of(part.size)], BLOCK)[: part.size]
