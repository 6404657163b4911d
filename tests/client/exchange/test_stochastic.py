"""Rounding to bfloat16 at random: to a neighbour, right in the mean, and the same for the same push."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import optd
from optd.exchange.row_gradients import RowGradient
from optd.exchange.stochastic import random_bits, round_at_random
from optd_wire.encodings.bfloat16 import BFloat16

FINITE = st.floats(-(2.0**126), 2.0**126, width=32)


def rounded(array, sequence=1, epoch=1, worker="w0"):
    return round_at_random([[array]], random_bits(worker, epoch, sequence))[0][0]


@settings(deadline=None)
@given(arrays(np.float32, st.integers(0, 40), elements=FINITE), st.integers(1, 100))
def test_each_number_becomes_one_of_its_two_neighbours(array, sequence):
    found = rounded(array, sequence)
    below = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = ((array.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    assert ((found == below) | (found == above)).all()
    assert (found[array == below] == array[array == below]).all(), "what bfloat16 holds stays"
    decoded = np.empty_like(found)
    BFloat16().decode_into(BFloat16().encode(found), decoded)
    assert (decoded == found).all()


@pytest.mark.parametrize("number", [1.001, -1.001, 0.3, 3e-39, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_of_many_pushes_is_the_number_itself(number, dtype):
    array = np.full(1000, number, dtype)
    found = np.concatenate([rounded(array, sequence).astype(np.float64) for sequence in range(1, 101)])
    unit = np.ptp(found)
    assert unit > 0
    # The standard error of a mean of 100,000 is at most unit / 632.
    assert abs(found.mean() - np.float64(np.float32(number))) < unit / 100


def test_the_same_push_has_the_same_bytes_and_others_have_others():
    array = np.random.default_rng(0).normal(size=(20, 500)).astype(np.float32)
    first = rounded(array, 3, 2, "w0")
    assert first.shape == array.shape
    assert (first == rounded(array, 3, 2, "w0")).all()
    for other in ((4, 2, "w0"), (3, 1, "w0"), (3, 2, "w1")):
        assert (first != rounded(array, *other)).any()


def test_what_has_no_neighbour_above_stays_as_it_is():
    largest = np.float32(3.3895313892515355e38)
    odd = np.array([np.inf, -np.inf, np.nan, largest, np.nextafter(largest, np.float32(np.inf)), 0.0], np.float32)
    found = rounded(odd)
    assert (found.view(np.uint32) == odd.view(np.uint32)).all()


def test_rows_are_rounded_and_16_bits_stay():
    narrow = np.ones(3, ml_dtypes.bfloat16)
    rows = RowGradient(np.array([1, 4], np.uint64), np.full((2, 300), 1.001, np.float32))
    found = round_at_random([[None, narrow, rows]], random_bits("w0", 1, 1))[0]
    assert found[0] is None
    assert found[1] is narrow
    assert set(np.unique(found[2].values)) == {np.float32(1.0), np.float32(1.0078125)}
    assert (found[2].ids == rows.ids).all()


@pytest.mark.slow
def test_steps_arrive_right_in_the_mean(server, name):
    """A gradient that rounding to the nearest always rounds down."""
    ends = {}
    for encoding in ("bfloat16", "bfloat16:stochastic"):
        with optd.connect(server.address, job=f"{name}-{encoding[8:].strip(':')}", lane="grpc") as session:
            optimizer = optd.SGD({"w": np.zeros(2000)}, lr=1.0, session=session)
            for _ in range(30):
                optimizer.step({"w": np.full(2000, 1.003)}, encoding=encoding)
            ends[encoding] = -session.pull()["w"].mean() / 30
    assert ends["bfloat16"] == pytest.approx(1.0, abs=1e-9)
    assert ends["bfloat16:stochastic"] == pytest.approx(1.003, abs=2e-4)
