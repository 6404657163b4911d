"""The mean of many gradients, against one parameter at a time."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.optim.backends import BACKENDS, COMPILED

from optd_server.optim import reduce
from optd_server.optim.backends.compiled import backend as compiled
from optd_server.optim.reduce import Contribution

EITHER = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def mean_naively(contributions: list[Contribution], sizes: list[int]) -> tuple[np.ndarray, list[bool]]:
    offsets = np.cumsum(sizes) - sizes
    out = np.zeros_like(contributions[0].gradient)
    covered = []
    for i, (start, size) in enumerate(zip(offsets, sizes, strict=True)):
        parts = [c.gradient[start : start + size] for c in contributions if c.present is None or c.present[i]]
        covered.append(bool(parts))
        if parts:
            total = parts[0].copy()
            for part in parts[1:]:
                total = total + part
            out[start : start + size] = total * out.dtype.type(1 / len(parts))
    return out, covered


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Contribution], list[int]]:
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 5, 40]), max_size=12))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    contributions = []
    for _ in range(draw(st.integers(1, 5))):
        gradient = rng.standard_normal(sum(sizes)).astype(dtype)
        mask = draw(st.none() | st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
        if mask is None:
            contributions.append(Contribution(gradient))
        else:
            gradient[~np.repeat(np.array(mask, bool), sizes)] = np.nan
            contributions.append(Contribution(gradient, np.array(mask, np.bool_)))
    return contributions, sizes


@settings(deadline=None, max_examples=150)
@given(rounds(), st.sampled_from(sorted(BACKENDS)), st.booleans())
def test_the_mean_is_that_of_whoever_has_the_parameter(case, name, large) -> None:
    """`large` takes the paths of large arrays: many blocks, and stores that go around the cache."""
    contributions, sizes = case
    given_gradients = [c.gradient.copy() for c in contributions]
    expected, covered = mean_naively(contributions, sizes)
    out = np.full_like(expected, np.nan)
    with (
        mock.patch.object(reduce, "BLOCK", 16 if large else reduce.BLOCK),
        mock.patch.object(compiled, "STREAMED_BYTES", 0 if large else compiled.STREAMED_BYTES),
    ):
        result = BACKENDS[name].reduce_mean(out, contributions, np.array(sizes, np.int64))
    np.testing.assert_array_equal(out, expected)
    assert result.present.tolist() == covered
    assert result.finite
    for contribution, gradient in zip(contributions, given_gradients, strict=True):
        np.testing.assert_array_equal(contribution.gradient, gradient)


@EITHER
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_where_all_have_all_it_is_the_sum_over_their_number(backend, workers) -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(150_000).astype(np.float32) for _ in range(workers)]
    out = np.empty(150_000, np.float32)
    backend.reduce_mean(out, [Contribution(g) for g in gradients], np.array([100_000, 50_000]), threads=2)
    np.testing.assert_allclose(out, np.sum(gradients, axis=0, dtype=np.float64) / workers, rtol=1e-6, atol=1e-6)


@EITHER
@pytest.mark.parametrize("other", [None, np.array([False, True])])
def test_the_bits_of_a_parameter_do_not_depend_on_who_has_others(backend, other) -> None:
    """A mean of one is that one, to the sign of its zeros, whether or not its block is mixed."""
    gradient = np.array([-0.0, 0.0, 1.5, 7.0], np.float32)
    contributions = [Contribution(gradient)]
    if other is not None:
        contributions.append(Contribution(np.ones(4, np.float32), other))
    out = np.empty(4, np.float32)
    backend.reduce_mean(out, contributions, np.array([3, 1]))
    assert out[:3].tobytes() == gradient[:3].tobytes()


@EITHER
def test_overflow_and_nan_pass_through_without_a_warning_and_are_told(backend) -> None:
    gradient = np.array([3e38, np.nan, np.inf], np.float32)
    out = np.empty(3, np.float32)
    with np.errstate(all="raise"):
        mean = backend.reduce_mean(out, [Contribution(gradient), Contribution(gradient)], np.array([3]))
    assert not mean.finite
    np.testing.assert_array_equal(out, [np.inf, np.nan, np.inf])


def test_the_bits_do_not_depend_on_the_backend() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([100_001, *[3] * 1000, 200_000])
    contributions = [
        Contribution(rng.standard_normal(sizes.sum()).astype(np.float32), rng.random(len(sizes)) < 0.6)
        for _ in range(3)
    ]
    outs = [np.empty(sizes.sum(), np.float32) for _ in BACKENDS]
    for out, backend in zip(outs, BACKENDS.values(), strict=True):
        backend.reduce_mean(out, contributions, sizes, threads=2)
    assert outs[0].tobytes() == outs[1].tobytes()


def test_a_contribution_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"contributions must be float32 of shape \(3,\)"):
        COMPILED.reduce_mean(np.empty(3, np.float32), [Contribution(np.empty(2, np.float32))], np.array([3]))
