"""The first element that is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.server.optim.backends import BACKENDS

from optd_server.optim.runs import BLOCK

EITHER = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


@EITHER
@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 20)))
def test_it_is_the_first_of_those_that_numpy_finds(backend, array) -> None:
    found = np.flatnonzero(~np.isfinite(array))
    assert backend.first_nonfinite(array) == (found[0] if len(found) else None)


@EITHER
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_it_is_found_in_any_block(backend, value, index) -> None:
    array = np.ones(2 * BLOCK + 6, np.float32)
    array[index] = value
    array[-1] = np.nan
    assert backend.first_nonfinite(array, threads=2) == index


@EITHER
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_sum_that_overflows_is_no_false_alarm(backend, dtype) -> None:
    largest = np.finfo(dtype).max
    with np.errstate(all="raise"):
        assert backend.first_nonfinite(np.full(BLOCK + 1, largest, dtype)) is None
        assert backend.first_nonfinite(np.array([largest, largest, np.inf], dtype)) == 2


@EITHER
def test_infinities_that_cancel_are_found(backend) -> None:
    assert backend.first_nonfinite(np.array([1, np.inf, -np.inf])) == 1
