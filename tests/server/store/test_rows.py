"""Rows that are added up by their numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optd_server.store.extents import extent_of
from optd_server.store.rows import RowSums, densify, merge, place_of
from optd_wire.encodings.registry import exact_for
from optd_wire.errors import InvalidRequest
from optd_wire.layout import lay_out
from optd_wire.row_frames import RowFrame, table_shape
from optd_wire.values import ParameterSpec

# The last is of another dtype, so that it lies in another slab.
SPECS = (("a", (2,), "float32"), ("t", (6, 2), "float32"), ("d", (3,), "float64"), ("u", (4, 1, 3), "float32"))
EXTENTS = (extent_of([lay_out([ParameterSpec(*spec) for spec in SPECS])]),)


def naive(ids, values):
    sums = {}
    for number, row in zip(ids.tolist(), values, strict=True):
        sums[number] = sums[number] + row if number in sums else row
    return sums


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(0, 2**32))
def test_rows_of_one_number_are_added_from_first_to_last(numbers, seed):
    """In float32 another order gives other bits. One number may come more often than is added up at once."""
    ids = np.array([each if each < 6 else 0 for each in numbers], np.int64)
    values = np.random.default_rng(seed).standard_normal((len(ids), 3)).astype("f4") * 1000
    merged, sums = merge(ids, values)
    expected = naive(ids, values)
    assert merged.tolist() == sorted(expected)
    for number, row in zip(merged.tolist(), sums, strict=True):
        assert np.array_equal(row, expected[number])


def frame(member, ids, values):
    values = np.asarray(values)
    return RowFrame(0, member, len(ids), exact_for(values.dtype), np.asarray(ids, "<u8"), values.reshape(-1))


@pytest.mark.parametrize("cuts", [1, 2, 7, 30])
def test_however_frames_are_cut_the_bits_are_the_same(cuts):
    rng = np.random.default_rng(0)
    ids, values = rng.integers(0, 6, 60), rng.standard_normal((60, 2)).astype("f4")
    sums = RowSums(EXTENTS)
    for part, rows in zip(np.array_split(ids, cuts), np.array_split(values, cuts), strict=True):
        assert sums.add(frame(1, part, rows)).name == "t"
        assert sums.size <= 2 * 6 * 2 + rows.size  # what has been added up takes no more than the whole table
    (found,) = sums.sums()
    expected = naive(ids, values)
    assert found.ids.tolist() == sorted(expected)
    assert np.array_equal(found.values, [expected[number] for number in found.ids.tolist()])


def test_rows_find_their_parameter():
    slabs = [[np.full(slab.count, 9, slab.dtype) for slab in EXTENTS[0].slabs]]
    sums = RowSums(EXTENTS)
    sums.add(frame(3, [2, 2], np.ones((2, 3), "f4")))
    sums.add(frame(2, [1], np.ones(1)))
    rows = list(sums.sums())
    assert [(each.place.group, each.place.member, each.place.name) for each in rows] == [(0, 3, "u"), (0, 2, "d")]
    densify(rows, slabs)
    for each in rows:
        table = each.place.table(slabs[each.place.extent][each.place.slab])
        assert np.array_equal(np.flatnonzero(table.any(1)), each.ids)
    assert slabs[0][0].tolist() == [9] * 14 + [0] * 6 + [2] * 3 + [0] * 3
    assert slabs[0][1].tolist() == [0, 1, 0]
    assert place_of(EXTENTS, 0, 1).start == 2


def test_rows_over_more_dimensions_split_those_that_were_added_before():
    """The sums are those of the dense gradients, whichever frame comes first; memory is told before it is taken."""
    rng = np.random.default_rng(3)
    shape = (4, 1, 3)
    for order in ([1, 3, 2], [3, 1, 2], [2, 3, 1]):
        sums, expected = RowSums(EXTENTS), np.zeros(shape, "f4")
        for dims in order:
            rows, columns = table_shape(shape, dims)
            ids, values = rng.permutation(rows)[:2], rng.standard_normal((2, columns)).astype("f4")
            given = frame(3, ids, values)
            given.sparse_dims = dims
            told = sums.bytes_with([given])
            assert sums.add(given).name == "u"
            assert told >= sums.bytes_with([])  # what is added up already takes less
            expected.reshape(rows, columns)[ids] += values
        (found,) = sums.sums()
        assert found.place.columns == 1
        slabs = [[np.full(slab.count, 9, slab.dtype) for slab in EXTENTS[0].slabs]]
        densify([found], slabs)
        assert np.array_equal(found.place.table(slabs[0][0]).reshape(shape), expected)


def test_rows_over_more_dimensions_than_there_are_are_refused():
    given = frame(1, [0], np.ones(2, "f4"))
    given.sparse_dims = 3
    sums = RowSums(EXTENTS)
    with pytest.raises(
        InvalidRequest, match=r"'t' over 3 dimensions; its shape is \(6, 2\), so sparse_dims must be at most 2"
    ):
        sums.add(given)
    assert sums.size == 0
