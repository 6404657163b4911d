"""Finds changes in the content of arrays: small arrays are remembered whole, large ones by a sample.

Knows nothing of jobs; `optd.registration.local_changes` decides what to do about changes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from optd.params.flat_view import Array

MOST_WHOLE = 1 << 14
"""The largest number of elements of an array that is held whole; larger ones are sampled."""
SAMPLE = 1_000
LEAST_SAMPLE = 16
"""The approximate size of a sample is `SAMPLE`; if many arrays are sampled, they share `SAMPLES`."""
SAMPLES = 1 << 15
# How many elements are held whole in all. Reading them must take little time compared with a step, which also takes
# some time for each array, however small.
LEAST_HELD, MOST_HELD, HELD_FRACTION, HELD_EACH = 1 << 16, 1 << 18, 8, 128
WATCHED_NOTES, FIRST_NOTES = 8, 3
"""For how many notes a large array is fingerprinted after it was written to, and at the start."""


def fingerprint(array: Array) -> int:
    """A hash of 128 bits of all elements in C order. Reads the whole array.

    Arrays of one shape and dtype with the same bits have the same fingerprint, and almost surely no others have it:
    0.0 and -0.0 differ, and a NaN equals itself.
    """
    return xxhash.xxh3_128_intdigest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def sample_stride(size: int, most: int) -> int:
    """The distance of sampled elements: a prime, so that they do not fall into a few columns of a matrix."""
    stride = max(2, -(-size // most))
    while any(stride % divisor == 0 for divisor in range(2, int(stride**0.5) + 1)):
        stride += 1
    return stride


def sampled(array: Array, stride: int) -> Array:
    """The first element, every element `stride` further, and the last one, in C order."""
    found: Array = array[np.unravel_index(sample_places(array.size, stride), array.shape)]
    return found


def sample_places(size: int, stride: int) -> npt.NDArray[np.int64]:
    """The places of the elements that `sampled` gives."""
    return np.append(np.arange(0, size, stride), size - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """The addresses of arrays, by their number, at one moment. The arrays must stay there while they are read.

    Thousands of arrays are read in one go, by their addresses, which is faster than one by one.
    """

    addresses: npt.NDArray[np.int64]
    """In bytes, of arrays in C order at multiples of the size of their elements; arbitrary for those in `given`.

    Never changed: the same object means that all arrays lie where they did.
    """
    given: Mapping[int, Array]
    """The other arrays, of any strides; a sampled array may be given by its sample."""

    @classmethod
    def at(cls, arrays: Sequence[Array]) -> "Look":
        """The addresses of these arrays, which the caller must keep alive."""
        addresses = np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
        plain = [array.flags.c_contiguous and array.flags.aligned for array in arrays]
        return cls(addresses, {number: array for number, array in enumerate(arrays) if not plain[number]})


@dataclass(frozen=True, slots=True)
class Differences:
    """Numbers of arrays, in order."""

    certain: list[int]
    """Those whose content differs."""
    unknown: list[int]
    """Those that were written to, or lie in other memory, and whose sample is the same."""

    @property
    def all(self) -> list[int]:
        """Both."""
        return sorted((*self.certain, *self.unknown))

    def __bool__(self) -> bool:
        return bool(self.certain or self.unknown)


class _Window:
    """The memory of this process from an address on, as an array interface.

    Most of it is not mapped: only known addresses may be read.
    """

    def __init__(self, address: int, count: int, itemsize: int) -> None:
        kind = f"<u{itemsize}"
        self.__array_interface__ = {"data": (address, True), "shape": (count,), "typestr": kind, "version": 3}


class _Reader:
    """Reads the bits of some elements of several arrays into one array."""

    def __init__(self, itemsize: int, places: Sequence[npt.NDArray[np.int64]]) -> None:
        """`places` are those of the elements in each array."""
        self._itemsize = itemsize
        self._counts = np.array([each.size for each in places])
        self._places = np.concatenate(places, dtype=np.int64)
        self._addresses: npt.NDArray[np.int64] | None = None
        self._window: Any = None
        self._index: Any = None
        """The elements' indices in the window, for arrays at `_addresses`."""

    def read(self, addresses: npt.NDArray[np.int64]) -> Array:
        """An array at address 0 is not read; its bits are arbitrary."""
        if self._addresses is None or not np.array_equal(addresses, self._addresses):
            self._find(addresses)
        return self.read_again()

    def read_again(self) -> Array:
        """At the addresses of the last time."""
        found: Array = self._window.take(self._index)
        return found

    def _find(self, addresses: npt.NDArray[np.int64]) -> None:
        self._addresses = addresses
        known = addresses[(addresses > 0) & (self._counts > 0)]
        if not known.size:
            self._window, self._index = np.zeros(1, f"u{self._itemsize}"), np.zeros_like(self._places)
            return
        first = int(known.min())
        begins = np.where(addresses > 0, (addresses - first) // self._itemsize, 0)
        self._index = np.repeat(begins, self._counts)
        self._index += self._places
        if known.size < addresses.size:
            self._index[np.repeat(addresses <= 0, self._counts)] = 0
        self._window = np.asarray(_Window(first, int(self._index.max()) + 1, self._itemsize))


class _Bucket:
    """The arrays whose elements have one size, and what is remembered of them."""

    def __init__(self, itemsize: int, numbers: Sequence[int], places: Sequence[npt.NDArray[np.int64]]) -> None:
        self.numbers = numbers
        self.held: Array | None = None
        """Their bits."""
        self._bounds = np.cumsum([0, *(each.size for each in places)])
        self._numbers = np.array(numbers)
        self._addresses: npt.NDArray[np.int64] | None = None
        """The array of addresses that the reader has its indices for."""
        self._reader = _Reader(itemsize, places)

    def span(self, place: int) -> slice:
        """The range of an array's bits in `held`, by its place in `numbers`."""
        return slice(self._bounds[place], self._bounds[place + 1])

    def bits(self, look: Look, strides: Mapping[int, int]) -> Array:
        """What they hold now."""
        if not look.given and look.addresses is self._addresses:
            return self._reader.read_again()
        addresses = look.addresses[self._numbers]
        given = [(place, number) for place, number in enumerate(self.numbers) if number in look.given]
        addresses[[place for place, _ in given]] = 0
        found = self._reader.read(addresses)
        self._addresses = None if given else look.addresses
        for place, number in given:
            array, stride, span = look.given[number], strides.get(number), self.span(place)
            is_whole = stride is None or array.size == span.stop - span.start
            part = array if is_whole or stride is None else sampled(array, stride)
            found[span] = np.ascontiguousarray(part).reshape(-1).view(found.dtype)
        return found

    def differing(self, found: Array) -> Iterator[int]:
        """The numbers of the arrays whose bits are others than those that are held."""
        if self.held is None:
            return
        differs = found != self.held
        if not differs.any():
            return
        places = np.searchsorted(self._bounds, np.flatnonzero(differs), side="right") - 1
        # Not by np.unique, which imports more of numpy in the middle of a step.
        for place in sorted(set(places.tolist())):
            yield self.numbers[place]


class Contents:
    """Remembers what numbered arrays hold. Their sizes and dtypes must not change."""

    def __init__(self, arrays: Sequence[tuple[int, np.dtype[Any]]], *, tells_writes: bool = False) -> None:
        """`arrays` are the size and dtype of each; `tells_writes` says that `differences` will be told of writes."""
        sizes = [size for size, _ in arrays]
        order = sorted(range(len(arrays)), key=sizes.__getitem__)
        room = max(LEAST_HELD, HELD_EACH * len(arrays), min(MOST_HELD, sum(sizes) // HELD_FRACTION))
        ends = np.cumsum([sizes[number] for number in order], dtype=np.int64)
        held = int(np.searchsorted(ends, room, side="right"))
        held = min(held, sum(size <= MOST_WHOLE for size in sizes))
        most = min(SAMPLE, max(LEAST_SAMPLE, SAMPLES // max(1, len(order) - held)))
        self.strides = {number: sample_stride(sizes[number], most) for number in order[held:]}
        """The strides of sampled arrays, by number."""
        first = WATCHED_NOTES - FIRST_NOTES
        self._watched = dict.fromkeys(self.strides, first) if tells_writes else {}
        """For large arrays that are fingerprinted: the number of notes since they were written to."""
        self._fingerprints: dict[int, int] = {}
        members: dict[int, list[int]] = {}
        for number in order:
            members.setdefault(arrays[number][1].itemsize, []).append(number)
        self._buckets = [
            _Bucket(itemsize, numbers, [self._places(number, sizes[number]) for number in numbers])
            for itemsize, numbers in members.items()
        ]

    def _places(self, number: int, size: int) -> npt.NDArray[np.int64]:
        stride = self.strides.get(number)
        return np.arange(size) if stride is None else sample_places(size, stride)

    def note(self, look: Look, whole: Callable[[int], Array], *, but: Collection[int] = frozenset()) -> None:
        """Remembers what arrays hold now; for those in `but` the earlier note stays. `whole` returns a whole array."""
        for bucket in self._buckets:
            found, before = bucket.bits(look, self.strides), bucket.held
            if but and before is not None:
                for place, number in enumerate(bucket.numbers):
                    if number in but:
                        found[bucket.span(place)] = before[bucket.span(place)]
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

    def differences(self, look: Look, whole: Callable[[int], Array], written: Collection[int] = ()) -> Differences:
        """The arrays that differ from their note; `written` are those that were written to.

        A large array in `written` is compared whole if it has a recent fingerprint; else it counts as unknown.
        """
        certain = [number for bucket in self._buckets for number in bucket.differing(bucket.bits(look, self.strides))]
        unknown = []
        for number in {*written} & self.strides.keys() - {*certain}:
            self._watched[number] = 0
            known = self._fingerprints.get(number)
            if known is None:
                unknown.append(number)
            elif known != fingerprint(whole(number)):
                certain.append(number)
        return Differences(sorted(certain), sorted(unknown))
