"""Copies that threads share: every number arrives, and no other place is written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optd.params import copying

pair = st.tuples(
    st.lists(st.integers(0, 6), max_size=3).map(tuple),
    st.sampled_from(["f4", "f8"]),
    st.sampled_from(["c", "fortran", "every other"]),
    st.sampled_from(["c", "fortran"]),
)


def strided(array, kind):
    if kind == "fortran":
        return np.asfortranarray(array)
    if kind == "every other" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return array


@settings(deadline=None)
@given(st.lists(pair, max_size=12), st.integers(1, 9), st.integers(1, 400))
def test_pairs_arrive_whole_however_they_are_shared_out(kinds, threads, large):
    rng = np.random.default_rng(0)
    sources = [strided(rng.normal(size=shape).astype(dtype), way) for shape, dtype, _, way in kinds]
    targets = [strided(np.full(shape, np.nan, dtype), way) for shape, dtype, way, _ in kinds]
    pairs = list(zip(targets, sources, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "LARGE_BYTES", large)
        patch.setattr(copying, "MOST_THREADS", threads)
        patch.setattr(copying.os, "sched_getaffinity", lambda _: range(16))
        copying.copy_all(pairs)
    for target, source in pairs:
        np.testing.assert_array_equal(target, source)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=10), st.integers(1, 6))
def test_shares_are_alike_and_hold_each_element_once(sizes, threads):
    pairs = [(np.zeros(size), np.ones(size)) for size in sizes]
    total = sum(target.nbytes for target, _ in pairs)
    shares = copying._shares(pairs, total, threads)
    assert len(shares) <= threads
    for share in shares:
        for target, _ in share:
            np.add(target, 1, out=target)
    assert all((target == 1).all() for target, _ in pairs)
    assert max(sum(target.nbytes for target, _ in share) for share in shares) <= -(-total // threads) + 8


def test_what_a_thread_raises_is_raised(monkeypatch):
    monkeypatch.setattr(copying, "LARGE_BYTES", 1)
    monkeypatch.setattr(copying.os, "sched_getaffinity", lambda _: range(4))
    wrong = [(np.zeros(1000), np.zeros(1000)), (np.zeros((2, 500)), np.zeros((5, 200)).T)]
    with pytest.raises(ValueError, match="broadcast"):
        copying.copy_all(wrong)


def test_another_dtype_is_converted():
    target = np.zeros(3, "f8")
    copying.copy_all([(target, np.array([1, 2, 3], "f4"))])
    assert target.tolist() == [1, 2, 3]
