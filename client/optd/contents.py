"""What some arrays hold, remembered so that a later change is found: small arrays whole, large ones by a sample.

Knows arrays and nothing of jobs. Which of them a script has changed is asked in `optd.local_changes`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from optd.arrays import Array

MOST_WHOLE = 1 << 14
"""Larger arrays are sampled, of so many elements."""
SAMPLE = 1_000
LEAST_SAMPLE = 16
"""About how many elements a sample has: where many arrays are sampled they share `SAMPLES`."""
SAMPLES = 1 << 16
# How many elements are held whole in all. Reading them must not show beside a step, which also takes some time for
# each array, however small.
LEAST_HELD, MOST_HELD, HELD_FRACTION, HELD_EACH = 1 << 16, 1 << 19, 8, 128
WATCHED_NOTES, FIRST_NOTES = 8, 3
"""For so many notes fingerprints of a large array are taken after it was last written to, and at first."""


def fingerprint(array: Array) -> int:
    """Return a hash of 128 bits of all elements, bit by bit, in C order. Reads the whole array.

    Arrays of one shape and dtype have the same fingerprint if, and but for chance only if, they hold the same bits:
    0.0 and -0.0 differ, and a NaN is the same as itself.
    """
    return xxhash.xxh3_128_intdigest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def sample_stride(size: int, most: int) -> int:
    """The distance of sampled elements: a prime, so that in a matrix they do not all lie in a few columns."""
    stride = max(2, -(-size // most))
    while any(stride % divisor == 0 for divisor in range(2, int(stride**0.5) + 1)):
        stride += 1
    return stride


def sampled(array: Array, stride: int) -> tuple[Array, ...]:
    """The first element, each that is `stride` further, and the last one, in C order, in pieces."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        return flat[::stride], flat[-1:]
    places = np.append(np.arange(0, array.size, stride), array.size - 1)
    return (array[np.unravel_index(places, array.shape)],)


def sample_size(size: int, stride: int) -> int:
    """How many elements `sampled` gives."""
    return -(-size // stride) + 1


@dataclass(frozen=True, slots=True)
class Differences:
    """Numbers of arrays, in order."""

    certain: list[int]
    """Those whose content is another one."""
    unknown: list[int]
    """Those that were written to, or lie in other memory, and whose sample is the same."""

    @property
    def all(self) -> list[int]:
        """Both."""
        return sorted((*self.certain, *self.unknown))

    def __bool__(self) -> bool:
        return bool(self.certain or self.unknown)


@dataclass(slots=True)
class _Bucket:
    """The arrays of one dtype, and what is remembered of them, one behind the other."""

    numbers: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    whole: int = 0
    """The first so many are held whole."""
    bounds: Any = None
    held: Array | None = None
    """Their bits."""

    def seal(self) -> None:
        self.bounds = np.cumsum([0, *self.counts])


class Contents:
    """Remembers what arrays hold, which are given by their number; shapes and dtypes stay what they were at first."""

    def __init__(self, arrays: Sequence[tuple[int, np.dtype[Any]]], *, tells_writes: bool = False) -> None:
        """Of each array: how many elements it has, and its dtype; and whether somebody tells which are written to."""
        self._sizes = [size for size, _ in arrays]
        self._fingerprints: dict[int, int] = {}
        self.strides: dict[int, int] = {}
        """By number, for those that are not held whole."""
        order = sorted(range(len(arrays)), key=self._sizes.__getitem__)
        total = sum(self._sizes)
        room = max(LEAST_HELD, HELD_EACH * len(arrays), min(MOST_HELD, total // HELD_FRACTION))
        ends = np.cumsum([self._sizes[number] for number in order], dtype=np.int64)
        held = int(np.searchsorted(ends, room, side="right"))
        held = min(held, sum(size <= MOST_WHOLE for size in self._sizes))
        most = min(SAMPLE, max(LEAST_SAMPLE, SAMPLES // max(1, len(order) - held)))
        self.strides.update({number: sample_stride(self._sizes[number], most) for number in order[held:]})
        first = WATCHED_NOTES - FIRST_NOTES
        self._watched = dict.fromkeys(self.strides, first) if tells_writes else {}
        """Of large arrays whose fingerprints are taken: at how many notes since they were written to."""
        self._buckets: dict[np.dtype[Any], _Bucket] = {}
        for number in order:
            self._place(number, arrays[number][1])
        for bucket in self._buckets.values():
            bucket.seal()

    def _place(self, number: int, dtype: np.dtype[Any]) -> None:
        bucket = self._buckets.setdefault(dtype, _Bucket())
        stride, size = self.strides.get(number), self._sizes[number]
        bucket.numbers.append(number)
        bucket.counts.append(size if stride is None else sample_size(size, stride))
        bucket.whole += stride is None

    def note(
        self, arrays: Sequence[Array], whole: Callable[[int], Array], *, but: Collection[int] = frozenset()
    ) -> None:
        """Remember what arrays hold now; of those in `but`, what was remembered stays.

        In the place of a large array its sample may be given; `whole` gives all of it.
        """
        for bucket in self._buckets.values():
            found, before = self._bits(bucket, arrays), bucket.held
            if but and before is not None:
                for place, number in enumerate(bucket.numbers):
                    if number in but:
                        span = slice(bucket.bounds[place], bucket.bounds[place + 1])
                        found[span] = before[span]
            bucket.held = found
        for number, unused in tuple(self._watched.items()):
            if number in but:
                continue
            if unused == WATCHED_NOTES:
                del self._watched[number]
                self._fingerprints.pop(number, None)
            else:
                self._watched[number] = unused + 1
                self._fingerprints[number] = fingerprint(whole(number))

    def differences(
        self, arrays: Sequence[Array], whole: Callable[[int], Array], written: Collection[int] = ()
    ) -> Differences:
        """Which arrays hold something else than when they were noted; `written` are those that may.

        A large one that was written to is told by all of its content, where that was so at the start, or not long ago.
        """
        certain = [number for bucket in self._buckets.values() for number in self._differing(bucket, arrays)]
        unknown = []
        for number in {*written} & self.strides.keys() - {*certain}:
            self._watched[number] = 0
            known = self._fingerprints.get(number)
            if known is None:
                unknown.append(number)
            elif known != fingerprint(whole(number)):
                certain.append(number)
        return Differences(sorted(certain), sorted(unknown))

    def _differing(self, bucket: _Bucket, arrays: Sequence[Array]) -> Iterator[int]:
        found, held = self._bits(bucket, arrays), bucket.held
        if held is None or np.array_equal(found, held):
            return
        places = np.searchsorted(bucket.bounds, np.flatnonzero(found != held), side="right") - 1
        for place in np.unique(places):
            yield bucket.numbers[place]

    def _bits(self, bucket: _Bucket, arrays: Sequence[Array]) -> Array:
        pieces = [arrays[number] for number in bucket.numbers[: bucket.whole]]
        for number, count in zip(bucket.numbers[bucket.whole :], bucket.counts[bucket.whole :], strict=True):
            array = arrays[number]
            if array.size == count:
                pieces.append(array)
            else:
                pieces.extend(sampled(array, self.strides[number]))
        joined: Array = np.concatenate(pieces, axis=None)
        return joined.view(np.dtype(f"u{joined.itemsize}"))
