"""topk: only the largest elements, with their places."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_wire.encodings.base import FLOAT32, Array, Buffer, Encoding, rounded
from optd_wire.errors import InvalidRequest, MalformedMessage
from optd_wire.v1.tensor_pb2 import ENCODING_TOPK

PAIR = 8  # bytes
DEFAULT_FRACTION = 0.01


class TopK(Encoding):
    """The `fraction * count` elements (rounded up) of a range of `count` that are largest in magnitude.

    NaN and infinity count as larger than any number; of equal elements the first ones are sent. Decoding takes payloads
    of any fraction.

    Error: none in an element that is sent, except that float64 numbers are rounded to float32. An element that is left
    out decodes to 0; its magnitude is at most that of any element that is sent. For gradients only, with error
    feedback, which sends later what is left out now.
    """

    name = "topk"
    leaves_out = True
    number = ENCODING_TOPK
    carries_weights = False
    width = "8 bytes or none"

    def __init__(self, fraction: float = DEFAULT_FRACTION) -> None:
        if not 0 < fraction <= 1:
            raise InvalidRequest(problem=f"topk: fraction must be in (0, 1], got {fraction}")
        self.fraction = fraction

    def kept(self, count: int) -> int:
        """The number of elements that are sent, of `count`."""
        return min(count, math.ceil(self.fraction * count))

    def bytes_of(self, count: int) -> int:
        """8 for each element that is sent."""
        return PAIR * self.kept(count)

    def fits(self, count: int, length: int) -> bool:
        """Whether the payload is whole pairs, no more than there are elements."""
        return length % PAIR == 0 and length <= PAIR * count

    def check(self, payload: Buffer, count: int) -> None:
        """Raises `MalformedMessage` unless the places ascend and are all below `count`."""
        places, _ = _parts(payload)
        if not places.size:
            return
        falls = places[1:] <= places[:-1]
        if falls.any():
            at = int(falls.argmax())
            problem = f"topk: places must ascend, got {places[at]} before {places[at + 1]}"
            raise MalformedMessage(message="Frame", problem=problem)
        if places[-1] >= count:
            problem = f"topk: places must be in [0, {count}), got {places[-1]}"
            raise MalformedMessage(message="Frame", problem=problem)

    def encode(self, values: Array) -> Buffer:
        """Selects the elements of largest magnitude."""
        places = largest(values, self.kept(values.size))
        payload = np.empty(PAIR * places.size, np.uint8)
        indices, numbers = _parts(payload)
        indices[:] = places
        numbers[:] = rounded(self.name, values[places])
        return payload

    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Writes zeros, and the numbers at their places."""
        self.check(payload, out.size)
        places, numbers = _parts(payload)
        out.fill(0)
        with np.errstate(over="ignore", invalid="ignore"):
            out[places] = numbers


def largest(values: Array, kept: int) -> npt.NDArray[np.int64]:
    """The places of the `kept` elements of largest magnitude, ascending."""
    if kept == values.size:
        return np.arange(kept)
    # Without their sign bits, floats sort like integers, with infinity and NaN after all numbers.
    keys = np.abs(values).view(f"<u{values.itemsize}")
    bound = np.partition(keys, values.size - kept)[values.size - kept]
    chosen = keys > bound
    equal = np.flatnonzero(keys == bound)
    chosen[equal[: kept - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _parts(payload: Buffer) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    whole = np.frombuffer(payload, np.uint8)
    half = whole.size // 2
    return whole[:half].view("<u4"), whole[half:].view(FLOAT32)
