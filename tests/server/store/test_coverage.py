import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optd_server.store.coverage import Coverage

ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda r: (r[0], r[0] + r[1])), max_size=12)


@given(ranges)
def test_elements_are_taken_once_and_overlaps_change_nothing(added):
    coverage, written = Coverage(), set()
    for start, stop in added:
        new = set(range(start, stop))
        twice = coverage.add(start, stop)
        if new & written:
            assert twice == min(new & written)
        else:
            assert twice is None
            written |= new
    assert {x for start, stop in coverage.ranges for x in range(start, stop)} == written
    assert coverage.ranges == sorted(coverage.ranges)
    assert coverage.elements(5, 20) == len(written & set(range(5, 20)))


@given(ranges, st.lists(st.integers(0, 5), min_size=1, max_size=10))
def test_whole_and_partial_parameters(added, sizes):
    coverage, written, touched = Coverage(), set(), set()
    for start, stop in added:
        if coverage.add(start, stop) is None:
            written |= set(range(start, stop))
            touched |= set(range(start, stop + 1))
    sizes = np.array(sizes)
    starts = np.cumsum(sizes) - sizes
    whole, partial = coverage.of(starts, sizes)
    for start, size, is_whole, is_partial in zip(starts, sizes, whole, partial, strict=True):
        elements = set(range(start, start + size))
        expected = elements <= written if size else start in touched
        assert bool(is_whole) == expected
        assert bool(is_partial) == bool(elements & written and not expected)


def test_neighbours_join_so_that_many_frames_in_order_stay_one_range():
    coverage = Coverage()
    for start in range(0, 1000, 10):
        coverage.add(start, start + 10)
    assert coverage.ranges == [(0, 1000)]
