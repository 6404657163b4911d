"""Rounds gradients to bfloat16 at random, so that they are right in the mean.

Rounding to the nearest loses what is small beside a number's last bit whenever it comes. Of a number x between two
neighbours a < b this takes b with the probability (x - a) / (b - a), so that the errors of many pushes, and of many
workers, cancel. The random bits follow from the name of a push alone: the same push always has the same bytes.
"""

import zlib

import numpy as np

from optd.exchange.row_gradients import Given, GradientsByGroup, RowGradient
from optd.params.flat_view import Array
from optd_wire.encodings.base import CHUNK, FLOAT32, MAGNITUDE, rounded

_HALF = np.dtype("<u2")
_LARGEST = 0x7F7F0000
"""The bits of the largest number of bfloat16. Numbers above it, infinities and NaN stay as they are."""
_NAME = "bfloat16"


def random_bits(worker: str, epoch: int, sequence: int) -> np.random.SFC64:
    """The source of the random bits of a push."""
    return np.random.SFC64(np.random.SeedSequence([zlib.crc32(worker.encode()), epoch, sequence]))


def round_at_random(gradients: GradientsByGroup, bits: np.random.SFC64) -> list[list[Given]]:
    """New gradients, in float32, whose numbers bfloat16 holds exactly; those of 16 bits stay as they are."""
    return [[_rounded(given, bits) for given in row] for row in gradients]


def _rounded(given: Given, bits: np.random.SFC64) -> Given:
    if isinstance(given, RowGradient):
        return RowGradient(given.ids, _round(given.values, bits), given.sparse_dims)
    return None if given is None else _round(given, bits)


def _round(values: Array, bits: np.random.SFC64) -> Array:
    if values.itemsize <= _HALF.itemsize:
        return values
    single = np.array(rounded(_NAME, values), FLOAT32, order="C")
    flat = single.reshape(-1).view(np.uint32)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        random = bits.random_raw(-(-chunk.size // 4)).astype("<u8", copy=False).view(_HALF)[: chunk.size]
        ordinary = chunk & MAGNITUDE < _LARGEST
        np.copyto(chunk, (chunk + random) & 0xFFFF0000, where=ordinary)
    return single
