"""The shared part of the two 16-bit encodings: conversions between float32 and halves, chunk by chunk."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from optd_wire.encodings.base import CHUNK, FLOAT32, Array, Buffer, Encoding, bytes_in, rounded
from optd_wire.errors import EncodingOverflow

_HALF = np.dtype("<u2")
_BITS = np.dtype("<u4")


class Halves(Encoding):
    """An encoding of 16 bits a number. Subclasses convert the bits of float32 numbers to the bits of halves, and back.

    Numbers of its own `dtype` travel unchanged.
    """

    width = "2 bytes"
    largest: ClassVar[float]
    """The largest finite number of a half."""

    def bytes_of(self, count: int) -> int:
        """2 for each element."""
        return 2 * count

    @abstractmethod
    def _shorten(self, bits: Array, halves: Array) -> int:
        """Fills `halves`; returns the bits of the largest finite magnitude that became infinite, or 0."""

    @abstractmethod
    def _widen(self, halves: Array, bits: Array) -> None:
        """Fills `bits`."""

    def encode(self, values: Array) -> Buffer:
        """Rounds to nearest, ties to even."""
        if self.keeps(values.dtype):
            return bytes_in(values)
        halves = np.empty(values.size, _HALF)
        if values.dtype == FLOAT32:
            self._encode(values, halves)
        else:
            for start in range(0, values.size, CHUNK):
                chunk = slice(start, start + CHUNK)
                self._encode(rounded(self.name, values[chunk]), halves[chunk])
        return halves

    def _encode(self, values: Array, halves: Array) -> None:
        lost = self._shorten(values.view(_BITS), halves)
        if lost:
            value = float(np.array(lost, _BITS).view(FLOAT32))
            raise EncodingOverflow(encoding=self.name, bound=self.largest, value=value)

    def decode_into(self, payload: Buffer, out: Array) -> None:
        """Exact, as float32 holds every half."""
        halves = np.frombuffer(payload, _HALF)
        if self.keeps(out.dtype):
            out.view(_HALF)[:] = halves
            return
        if out.dtype == FLOAT32:
            self._widen(halves, out.view(_BITS))
            return
        bits = np.empty(min(CHUNK, out.size), _BITS)
        for start in range(0, out.size, CHUNK):
            chunk = out[start : start + CHUNK]
            self._widen(halves[start : start + CHUNK], bits[: chunk.size])
            with np.errstate(over="ignore", invalid="ignore"):
                chunk[:] = bits[: chunk.size].view(FLOAT32)
