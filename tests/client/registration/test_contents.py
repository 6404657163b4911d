"""What arrays hold is remembered: small ones to the last bit, large ones by a sample, and whole where that is asked."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from optd.registration.contents import (
    FIRST_NOTES,
    MOST_WHOLE,
    WATCHED_NOTES,
    Contents,
    Differences,
    Look,
    fingerprint,
    sample_stride,
    sampled,
)

LARGE = MOST_WHOLE + 5
DTYPES = ["f4", "f8", "f2", ml_dtypes.bfloat16]


def noted(arrays: list[np.ndarray]) -> tuple[Contents, Callable[..., Differences]]:
    contents = Contents([(array.size, array.dtype) for array in arrays])
    contents.note(Look.at(arrays), arrays.__getitem__)
    return contents, lambda *written: contents.differences(Look.at(arrays), arrays.__getitem__, written)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_is_of_every_bit_and_of_nothing_else(dtype) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    same = [array.copy(), np.asfortranarray(array), array.reshape(24)]
    assert {fingerprint(each) for each in same} == {fingerprint(array)}
    for place in range(24):
        other = array.copy()
        other.flat[place] += 1
        assert fingerprint(other) != fingerprint(array)
    assert fingerprint(np.array([0.0], dtype)) != fingerprint(np.array([-0.0], dtype))
    assert fingerprint(np.array([np.nan], dtype)) == fingerprint(np.array([np.nan], dtype))
    assert fingerprint(array[::-1]) != fingerprint(array)
    assert fingerprint(np.array(1, dtype)) == fingerprint(np.array([1], dtype))
    assert fingerprint(np.empty((0, 3), dtype)) == fingerprint(np.empty(0, dtype))


def test_every_element_of_a_small_array_counts() -> None:
    arrays = [np.zeros(n, dtype) for n in (0, 1, 7, 300) for dtype in DTYPES] + [np.zeros((5, 3)).T, np.array(2.0)]
    _, differences = noted(arrays)
    assert not differences(*range(len(arrays)))
    for number, array in enumerate(arrays):
        for place in range(array.size):
            before = array.flat[place]
            array.flat[place] = -0.0 if before == 0 else 5
            assert differences() == Differences([number], [])
            array.flat[place] = before
    arrays[4][0], arrays[-1][...] = np.nan, 7
    assert differences() == Differences([4, len(arrays) - 1], [])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_sampled_at_both_ends_and_in_between(order) -> None:
    array = np.zeros((LARGE, 4), "f4", order=order)
    contents, differences = noted([np.zeros(3), array])
    for place in ((0, 0), (LARGE - 1, 3)):
        array[place] = 1
        assert differences() == Differences([1], [])
        array[place] = 0
    array[:, 2] = 1
    assert differences() == Differences([1], []), "a column"
    array[:, 2] = 0
    assert not differences()
    # One element in between, which the sample does not have.
    flat = np.ones(array.size)
    flat[:: contents.strides[1]] = 0
    array[np.unravel_index(int(np.flatnonzero(flat)[5]), array.shape)] = 1
    assert not differences()
    assert differences(1) == Differences([], [1])


def test_a_large_array_that_is_written_to_again_is_told_by_all_of_its_content() -> None:
    array = np.zeros(LARGE)
    contents, differences = noted([array])
    assert differences(0) == Differences([], [0])
    contents.note(Look.at([array]), lambda _: array)
    assert not differences(0)
    array[3] = 1
    assert differences(0) == Differences([0], [])
    for _ in range(WATCHED_NOTES + 1):
        contents.note(Look.at([array]), lambda _: array)
    assert contents.differences(Look.at([array]), lambda _: pytest.fail("nobody has written to it"), ()) == Differences(
        [], []
    )
    contents.note(Look.at([array]), lambda _: pytest.fail("nobody has written to it for long"))


def test_where_writes_are_told_of_all_of_the_content_is_looked_at_from_the_start() -> None:
    array, read = np.zeros(LARGE), []
    contents = Contents([(array.size, array.dtype)], tells_writes=True)

    def whole(_: int) -> np.ndarray:
        read.append(1)
        return array

    contents.note(Look.at([array]), whole)
    assert not contents.differences(Look.at([array]), whole, (0,))
    array[3] = 1
    assert contents.differences(Look.at([array]), whole, (0,)) == Differences([0], [])
    unused = Contents([(array.size, array.dtype)], tells_writes=True)
    read.clear()
    for _ in range(20):
        unused.note(Look.at([array]), whole)
        assert not unused.differences(Look.at([array]), whole)
    assert len(read) == FIRST_NOTES


def test_what_is_not_noted_is_remembered_as_it_was() -> None:
    arrays = [np.zeros(3), np.zeros(4), np.zeros(LARGE)]
    contents, differences = noted(arrays)
    for array in arrays:
        array[0] = 1
    contents.note(Look.at(arrays), arrays.__getitem__, but={1, 2})
    assert differences() == Differences([1, 2], [])


def test_a_sample_may_be_given_in_the_place_of_an_array() -> None:
    array = np.zeros(LARGE)
    contents, _ = noted([array])
    array[0] = 1
    sample = sampled(array, contents.strides[0])
    assert contents.differences(Look(np.zeros(1, np.int64), {0: sample}), lambda _: array) == Differences([0], [])


def test_arrays_of_every_kind_side_by_side() -> None:
    """In memory far apart, between each other, not aligned, of any order and size of element."""
    base, bytes_ = np.zeros(100, "f4"), np.zeros(4 * 10 + 1, np.uint8)
    arrays = [
        base[10:20],
        base[30:40:2],
        bytes_[1:].view("f4"),
        np.zeros((6, 7), "f4")[1:4],
        np.zeros((3, 5)).T,
        np.zeros((2, 0)),
        np.zeros((LARGE, 2)).T,
        np.zeros((LARGE, 2), "f2"),
        np.zeros(3, ml_dtypes.bfloat16),
        np.zeros(5_000_000, "f4"),
    ]
    assert not arrays[2].flags.aligned
    _, differences = noted(arrays)
    assert not differences()
    base[:10], base[20:30], base[31:41:2], bytes_[0] = 1, 1, 1, 1
    assert not differences(), "beside them"
    for number, array in enumerate(arrays):
        if array.size:
            array.flat[0] = array.flat[-1] = 1
            assert differences() == Differences([number], [])
            array.flat[0] = array.flat[-1] = 0


def test_what_is_held_and_read_is_bounded() -> None:
    few = Contents([(25_000_000, np.dtype("f4"))])
    assert 25_000_000 / few.strides[0] < 1_100
    many = Contents([(50_000, np.dtype("f4"))] * 2_000)
    assert sum(50_000 / stride for stride in many.strides.values()) <= 2_000 * 17
    small = Contents([(64, np.dtype("f4"))] * 10_000)
    assert not small.strides
    middling = Contents([(10_000, np.dtype("f4"))] * 1_000)
    assert 900 < len(middling.strides) < 1_000


def test_a_stride_is_a_prime() -> None:
    for size in (17_000, 1 << 20, 25_600_000):
        stride = sample_stride(size, 1_000)
        assert size / 1_100 < stride < size / 990
        assert all(stride % divisor for divisor in range(2, stride // 2))
