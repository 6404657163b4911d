"""The first element that is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optd_server.optim.finite import first_nonfinite
from optd_server.optim.runs import BLOCK


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 20)))
def test_it_is_the_first_of_those_that_numpy_finds(array) -> None:
    found = np.flatnonzero(~np.isfinite(array))
    assert first_nonfinite(array) == (found[0] if len(found) else None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_it_is_found_in_any_block(value, index) -> None:
    array = np.ones(2 * BLOCK + 6, np.float32)
    array[index] = value
    array[-1] = np.nan
    assert first_nonfinite(array) == index


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_sum_that_overflows_is_no_false_alarm(dtype) -> None:
    largest = np.finfo(dtype).max
    with np.errstate(all="raise"):
        assert first_nonfinite(np.full(BLOCK + 1, largest, dtype)) is None
        assert first_nonfinite(np.array([largest, largest, np.inf], dtype)) == 2


def test_infinities_that_cancel_are_found() -> None:
    assert first_nonfinite(np.array([1, np.inf, -np.inf])) == 1
