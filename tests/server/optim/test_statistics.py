"""Statistics against numpy's on a float64 copy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optd_server.optim.runs import BLOCK
from optd_server.optim.statistics import summarize

SAMPLES = {
    "normal": np.random.default_rng(0).standard_normal(3 * BLOCK + 17),
    "far from zero": 1e6 + np.random.default_rng(1).standard_normal(2 * BLOCK),
    "blocks that differ": np.repeat([0.0, 1.0, -5.0], BLOCK),
    "with what is not finite": np.array([np.nan, 1, 2, np.inf, -np.inf, 0, -3.5]),
    "matrix": np.arange(12.0).reshape(3, 4),
    "one element": np.array([2.5]),
    "0-d": np.array(2.5),
    "constant": np.full(1000, 0.1),
    "zeros": np.array([0.0, -0.0, 0.0]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_they_are_numpys(name, dtype) -> None:
    array = SAMPLES[name].astype(dtype)
    finite = array[np.isfinite(array)].astype(np.float64)
    statistics = summarize(array, bins=10)
    assert statistics.count == array.size
    assert statistics.nonfinite == array.size - finite.size
    assert statistics.zeros == np.sum(finite == 0)
    assert (statistics.min, statistics.max) == (finite.min(), finite.max())
    assert statistics.norm == pytest.approx(np.linalg.norm(finite), rel=1e-12)
    assert statistics.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12)
    assert statistics.std == pytest.approx(finite.std(), rel=1e-9, abs=1e-12)
    counts, _ = np.histogram(finite, np.array(statistics.edges))
    assert statistics.histogram == tuple(counts)
    assert sum(statistics.histogram) == finite.size


def test_the_histogram_reaches_from_min_to_max() -> None:
    statistics = summarize(np.array([0.0, 1.0, 2.0, 10.0]), bins=5)
    assert statistics.edges == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    assert statistics.histogram == (2, 1, 0, 0, 1)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_without_finite_elements_there_is_nothing_to_tell(values) -> None:
    statistics = summarize(np.array(values, np.float32), bins=3)
    assert (statistics.count, statistics.nonfinite, statistics.zeros) == (len(values), len(values), 0)
    assert statistics.norm == 0
    assert all(math.isnan(x) for x in (statistics.mean, statistics.std, statistics.min, statistics.max))
    assert statistics.histogram == (0, 0, 0)
    assert len(statistics.edges) == 4


@settings(deadline=None, max_examples=300)
@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 12)), st.integers(1, 40))
def test_no_array_is_too_strange(array, bins) -> None:
    """Neighbouring floats, subnormals, the largest and smallest at once: all are counted, and none warns."""
    with np.errstate(all="raise"):
        statistics = summarize(array, bins)
    assert sum(statistics.histogram) == statistics.count - statistics.nonfinite
    assert list(statistics.edges) == sorted(statistics.edges)
    assert len(statistics.edges) == bins + 1
    if sum(statistics.histogram):
        assert statistics.edges[0] <= statistics.min <= statistics.max <= statistics.edges[-1]


@pytest.mark.parametrize(
    "values",
    [
        [1.0, math.nextafter(1, 2)],
        [0.0, 5e-324],
        [-1.7e308, 0.0, 1.7e308],
        [1.79e308, math.nextafter(1.79e308, 0)],
        [1e-308, -1e-308],
    ],
)
def test_ranges_that_float64_cannot_divide_are_widened(values) -> None:
    statistics = summarize(np.array(values), bins=64)
    assert sum(statistics.histogram) == len(values)
    assert all(math.isfinite(edge) for edge in statistics.edges)
