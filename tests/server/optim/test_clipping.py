"""Clipping against torch, in the same test."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optd_server.optim.clipping import Bounds, Piece, clip, clip_values, vector_norm
from optd_server.optim.runs import BLOCK

TOLERANCE = {np.dtype("f4"): 1e-6, np.dtype("f8"): 1e-12}
INF = math.inf


def bounds(groups, *, values=None, norms=None, norm=INF, p=2.0):
    def filled(given):
        return np.array([(given or {}).get(group, INF) for group in range(groups)])

    return Bounds(filled(values), filled(norms), norm, p)


def by_torch(arrays, limits):
    """The gradients of `(group, array)` after torch has clipped them in the same order."""
    parameters = [
        torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype)) for _, array in arrays
    ]
    for parameter, (_, array) in zip(parameters, arrays, strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    members = {
        group: [parameter for parameter, (of, _) in zip(parameters, arrays, strict=True) if of == group]
        for group, _ in arrays
    }
    for group, own in members.items():
        if limits.values[group] < INF:
            torch.nn.utils.clip_grad_value_(own, limits.values[group])
        if limits.norms[group] < INF:
            torch.nn.utils.clip_grad_norm_(own, limits.norms[group], limits.p)
    total = torch.nn.utils.clip_grad_norm_(parameters, limits.norm, limits.p) if limits.norm < INF else None
    return [parameter.grad.numpy() for parameter in parameters], total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["f4", "f8"]), st.integers(0, 7)), min_size=1, max_size=6),
    st.sampled_from([1.0, 2.0, 3.0, INF]),
    st.sampled_from([INF, 0.01, 1.0, 50.0]),
    st.dictionaries(st.integers(0, 2), st.sampled_from([0.05, 1.0, 20.0])),
    st.dictionaries(st.integers(0, 2), st.sampled_from([0.05, 0.7, 20.0])),
    st.integers(0, 1000),
)
def test_the_same_as_torch(shapes, p, norm, norms, values, seed):
    numbers = np.random.default_rng(seed)
    arrays = [(group, numbers.normal(size=size).astype(dtype)) for group, dtype, size in shapes]
    if p == INF and any(not array.size for _, array in arrays):
        arrays = [(group, array) for group, array in arrays if array.size]  # of which torch knows no largest element
    limits = bounds(3, values=values, norms=norms, norm=norm, p=p)
    expected, total = by_torch(arrays, limits)
    found = [array.copy() for _, array in arrays]
    result = clip([Piece(group, array) for (group, _), array in zip(arrays, found, strict=True)], limits)
    # torch works out a norm of float32 in float32, and a factor from it for all.
    tolerance = max((TOLERANCE[array.dtype] for array in found), default=0.0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-30)
    if total is not None and not norms:
        assert result.norm == pytest.approx(float(total), rel=1e-6)
    changed = any((ours != array).any() for ours, (_, array) in zip(found, arrays, strict=True))
    assert result.changed or not changed


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 7.0, INF])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_norm_of_many_elements_does_not_depend_on_threads(p, dtype):
    elements = np.random.default_rng(1).normal(size=3 * BLOCK + 5).astype(dtype)
    one, many = vector_norm(elements, p), vector_norm(elements, p, threads=4)
    assert one == many
    assert one == pytest.approx(np.linalg.norm(elements.astype("f8"), p), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_norm_neither_overflows_nor_vanishes(scale):
    assert vector_norm(np.full(4, scale), 2.0) == pytest.approx(2 * scale, rel=1e-12)
    assert vector_norm(np.full(4, scale), 5.0) == pytest.approx(4**0.2 * scale, rel=1e-12)


def test_nothing_is_written_where_no_bound_is_reached():
    elements = np.array([3.0, 4.0])
    elements.flags.writeable = False
    found = clip([Piece(0, elements)], bounds(1, norm=5.1))
    assert (found.norm, found.changed) == (5.0, False)


def test_values_are_clipped_whatever_their_number():
    elements = np.linspace(-2, 2, 2 * BLOCK + 3)
    expected = np.clip(elements, -0.5, 0.5)
    assert clip_values(elements, 0.5, threads=2)
    assert (elements == expected).all()
    assert not clip_values(elements, 0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("values", "norms"), [({}, {}), ({}, {0: 0.5}), ({0: 1e10}, {}), ({0: 2.0}, {1: 0.5})])
def test_a_sum_that_has_overflowed_is_clipped_as_by_torch(values, norms):
    arrays = [(0, np.array([1.0, np.inf, -3.0], "f4")), (1, np.array([4.0, 0.0], "f4"))]
    limits = bounds(2, values=values, norms=norms, norm=1.0)
    expected, _ = by_torch(arrays, limits)
    found = [array.copy() for _, array in arrays]
    clip([Piece(group, array) for (group, _), array in zip(arrays, found, strict=True)], limits)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
