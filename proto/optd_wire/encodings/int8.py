"""int8: blocks of integers, each with a scale."""

import numpy as np

from optd_wire.encodings.base import CHUNK, FLOAT32, Array, Buffer, Encoding, rounded
from optd_wire.encodings.int8_blocks import BLOCK, blocks_of, grow_blocks, shrink_blocks
from optd_wire.encodings.kernels import kernels
from optd_wire.v1.tensor_pb2 import ENCODING_INT8


class Int8(Encoding):
    """Integers in [-127, 127] times a scale, which is the largest magnitude of the block over 127.

    Error: at most 1/253 of the largest magnitude of the block, or 2**-142 if that is more. float64 numbers are rounded
    to float32 first. A block with a NaN or an infinity decodes to NaN throughout.
    """

    name = "int8"
    leaves_out = True
    number = ENCODING_INT8
    width = "1 byte, and 4 for every 256 of them"

    def bytes_of(self, count: int) -> int:
        """1 for each element and 4 for each block."""
        return count + 4 * blocks_of(count)

    def encode(self, values: Array) -> Buffer:
        """Rounds to nearest, ties to even."""
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


def _parts(payload: Array, count: int) -> tuple[Array, Array]:
    split = 4 * blocks_of(count)
    return payload[:split].view("<f4"), payload[split:].view("i1")
