"""Parameters of 16 bits: the arithmetic of torch on a copy in float32, rounded after each step; and master weights."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.server.optim.backends import BACKENDS
from tests.server.optim.test_torch import NEVER, SGD_AND_SLOW, TABLE, Row, presence

from optd_server.optim import masters, option, runs
from optd_server.optim.algorithm import MASTER_WEIGHTS, Vector
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.option import OptionValue
from optd_server.optim.step import SegmentState, apply
from optd_server.optim.touched import RowGradient, apply_touched

DTYPES = pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
ROWS = pytest.mark.parametrize("row", SGD_AND_SLOW)
MASTERS = MASTER_WEIGHTS.name
STEPS = 9


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of which a parameter takes several."""
    with mock.patch.object(runs, "BLOCK", 2048):
        yield


def rounded(values: Vector, dtype: np.dtype) -> Vector:
    """By torch, which has its own conversions."""
    name = {"float16": torch.float16, "bfloat16": torch.bfloat16}[dtype.name]
    return torch.from_numpy(values.astype(np.float32)).to(name).float().numpy()


def assert_rounded(found: Vector, exact: Vector, dtype: np.dtype, tolerance: float | Vector) -> None:
    """That `found` is what a number that is near enough to `exact` rounds to."""
    low, high = rounded(exact - tolerance, dtype), rounded(exact + tolerance, dtype)
    same = np.isclose(found, rounded(exact, dtype), rtol=0, atol=0, equal_nan=True)
    assert (same | ((low <= found) & (found <= high))).all()


class Pair:
    """Groups of parameters of 16 bits with both backends, and torch's class on a float32 copy of each parameter."""

    def __init__(self, row: Row, dtype: np.dtype, groups: Sequence[Mapping[str, Any]], rng: np.random.Generator):
        self.row, self.dtype = row, dtype
        self.groups = [dict(group) for group in groups]
        shapes = [*row.shapes] * len(groups)
        sizes = [int(np.prod(shape)) for shape in shapes]
        counts = [len(row.shapes)] * len(groups)
        self.segments = {name: SegmentState(sizes, dtype, shapes=shapes, groups=counts) for name in BACKENDS}
        self.segment = self.segments["numpy"]
        self.weights = rng.standard_normal(sum(sizes)).astype(dtype)
        self.parameters = [
            torch.nn.Parameter(torch.from_numpy(part.astype(np.float32)).reshape(shape))
            for part, shape in zip(self.split(self.weights), shapes, strict=True)
        ]
        own = [{name: value for name, value in group.items() if name != MASTERS} for group in groups]
        count = len(row.shapes)
        entries = [
            {"params": self.parameters[index * count : (index + 1) * count], **options}
            for index, options in enumerate(own)
        ]
        how = {"foreach": False} if "foreach" in row.of(self.parameters[:1]).defaults else {}
        self.optimizer = row.torch_class(entries, **how)
        self.resolve()

    def resolve(self) -> None:
        declared = self.row.algorithm.options
        self.resolved: list[Mapping[str, OptionValue]] = []
        for group in self.groups:
            options = {name: value for name, value in group.items() if name != MASTERS}
            self.resolved.append({**option.resolve(declared, options), MASTERS: group[MASTERS]})

    @property
    def has_masters(self) -> np.ndarray:
        return np.repeat([group[MASTERS] for group in self.groups], len(self.row.shapes))

    def split(self, flat: Vector) -> list[Vector]:
        return np.split(flat, self.segment.offsets[1:])

    def step(self, gradient: Vector, present: np.ndarray | None = None) -> None:
        present = np.ones(len(self.parameters), bool) if present is None else present.reshape(-1)
        parts = zip(self.parameters, self.split(gradient), self.split(self.weights), present, strict=True)
        with torch.no_grad():
            for (parameter, grad, weights, there), kept in zip(parts, self.has_masters, strict=True):
                dense = torch.from_numpy(grad).reshape(parameter.shape)
                parameter.grad = (dense.to_sparse(1) if self.row.sparse else dense) if there else None
                if not kept:
                    parameter.copy_(torch.from_numpy(weights.astype(np.float32)).reshape(parameter.shape))
        self.optimizer.step()
        outs = {name: np.full_like(self.weights, np.nan) for name in BACKENDS}
        for name, backend in BACKENDS.items():
            apply(
                self.row.algorithm,
                self.resolved,
                self.segments[name],
                weights=self.weights,
                gradient=gradient,
                out=outs[name],
                present=present,
                backend=backend,
                threads=2,
            )
        self.weights = outs["numpy"]
        assert self.weights.view(np.uint16).tolist() == outs["numba"].view(np.uint16).tolist()

    def assert_equal(self) -> None:
        for name, array in self.segment.state.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(self.segments["numba"].state[name], array)
        count = len(self.row.shapes)
        for index, group in enumerate(self.groups):
            places = range(index * count, (index + 1) * count)
            self._assert_weights(places, 1e-6 * self.row.condition(group))
            for name in self.segment.state:
                self._assert_state(name, places, 1e-6 * self.row.condition(group))

    def _assert_weights(self, places: Sequence[int], bound: float) -> None:
        theirs = np.concatenate([self.parameters[place].detach().numpy().reshape(-1) for place in places])
        ours = np.concatenate([self.split(self.weights)[place] for place in places]).astype(np.float32)
        with np.errstate(all="ignore"):
            tolerance = bound * (np.abs(theirs) + largest(theirs)) + self.row.slack
            assert_rounded(ours, theirs, self.dtype, tolerance)

    def _assert_state(self, name: str, places: Sequence[int], bound: float) -> None:
        """Relative to each number, or where terms cancel to the largest of the group's array."""
        started = [place for place in places if self.segment.started[name][place]]
        if not started:
            return
        found = np.concatenate([self.segment.of(name, place).reshape(-1) for place in started])
        weights = np.concatenate([self.split(self.weights)[place] for place in started])
        tensors = [self.parameters[place] for place in started]
        if name == MASTERS:
            with np.errstate(over="ignore"):
                assert found.astype(self.dtype).view(np.uint16).tolist() == weights.view(np.uint16).tolist()
            expected = np.concatenate([tensor.detach().numpy().reshape(-1) for tensor in tensors])
        else:
            expected = np.concatenate([self.optimizer.state[tensor][name].numpy().reshape(-1) for tensor in tensors])
        slack = self.row.slack if name == MASTERS else 0
        atol = bound * largest(expected) + slack
        np.testing.assert_allclose(found, expected, rtol=bound, atol=atol, err_msg=name)


def largest(values: Vector) -> float:
    """The largest finite magnitude."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


@DTYPES
@ROWS
def test_every_algorithm_is_torchs_on_a_float32_copy(row: Row, dtype: np.dtype) -> None:
    """Groups with master weights beside groups without, parameters that come and go."""
    rng = np.random.default_rng(3)
    combinations = row.combinations()[:: max(1, len(row.combinations()) // 4)]
    pair = Pair(row, dtype, [{**each, MASTERS: kept} for each in combinations for kept in (False, True)], rng)
    for step in range(STEPS):
        gradient = rng.standard_normal(pair.segment.count).astype(np.float32)
        pair.step(gradient, presence(step, len(pair.groups), rng, len(row.shapes)))
        pair.assert_equal()
    kept = pair.segment.started[MASTERS].reshape(len(pair.groups), -1)
    assert kept[1::2].any(axis=1).all()
    assert not kept[::2].any()
    assert not kept[:, NEVER].any()


@DTYPES
def test_steps_that_are_too_small_for_the_weights_add_up_in_master_weights(dtype: np.dtype) -> None:
    sgd = ALGORITHMS["sgd"]
    moved = {}
    for kept in (False, True):
        options = [{**option.resolve(sgd.options, {"lr": 2.0**-14}), MASTERS: kept}]
        segment, weights = SegmentState([3], dtype), np.ones(3, dtype)
        for _ in range(64):
            out = np.empty_like(weights)
            apply(sgd, options, segment, weights=weights, gradient=np.ones(3, np.float32), out=out)
            weights = out
        moved[kept] = float(weights[0])
    assert moved == {False: 1.0, True: 1 - 64 * 2.0**-14}


def test_master_weights_that_were_turned_off_begin_anew_from_the_weights() -> None:
    rng = np.random.default_rng(4)
    pair = Pair(TABLE[0], np.dtype(np.float16), [{"lr": 0.01, MASTERS: True}], rng)

    def steps(kept: bool) -> None:
        pair.groups[0][MASTERS] = kept
        pair.resolve()
        for _ in range(3):
            pair.step(rng.standard_normal(pair.segment.count).astype(np.float32))
            pair.assert_equal()

    steps(True)
    steps(False)
    assert not pair.segment.started[MASTERS].any()
    # torch's copies are the rounded weights now, which is what master weights begin with.
    for parameter, weights in zip(pair.parameters, pair.split(pair.weights), strict=True):
        parameter.data = torch.from_numpy(weights.astype(np.float32)).reshape(parameter.shape)
    steps(True)


@DTYPES
@pytest.mark.parametrize("kept", [False, True], ids=["rounded", "masters"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_table_give_what_the_whole_gradient_gives(dtype: np.dtype, kept: bool, backend: str) -> None:
    """Of SGD, where rows without a gradient stay as they are either way."""
    sgd, rng = ALGORITHMS["sgd"], np.random.default_rng(5)
    options = [{**option.resolve(sgd.options, {"lr": 2.0**-11}), MASTERS: kept}]
    segments = [SegmentState([6, 40], dtype, shapes=[(6,), (10, 4)]) for _ in range(2)]
    weights = [rng.standard_normal(46).astype(dtype)] * 2
    for _ in range(5):
        gradient, ids = np.zeros(46, np.float32), np.sort(rng.choice(10, 3, replace=False))
        gradient[6:].reshape(10, 4)[ids] = rng.standard_normal((3, 4))
        gradient[:6] = rng.standard_normal(6)
        outs = [np.empty(46, dtype), weights[1].copy()]
        apply(sgd, options, segments[0], weights=weights[0], gradient=gradient, out=outs[0], backend=BACKENDS[backend])
        rows = [RowGradient(1, ids, gradient[6:].reshape(10, 4)[ids])]
        alone = np.where(np.arange(46) < 6, gradient, np.float32(np.nan))
        given = {"weights": weights[1], "gradient": alone, "out": outs[1], "present": np.array([True, False])}
        apply_touched(sgd, options, segments[1], **given, rows=rows, backend=BACKENDS[backend])
        weights = outs
        assert outs[0].tobytes() == outs[1].tobytes()
    assert [segment.state.keys() for segment in segments] == [{MASTERS} if kept else set()] * 2
    if kept:
        assert segments[0].state[MASTERS].tobytes() == segments[1].state[MASTERS].tobytes()


def test_parameters_of_float32_and_float64_have_none() -> None:
    sgd = ALGORITHMS["sgd"]
    for dtype in (np.float32, np.float64):
        segment, out = SegmentState([2], dtype), np.empty(2, dtype)
        options = [{**option.resolve(sgd.options, {"lr": 0.5}), MASTERS: True}]
        apply(sgd, options, segment, weights=np.ones(2, dtype), gradient=np.ones(2, dtype), out=out)
        assert out.tolist() == [0.5, 0.5]
        assert segment.state == {}


@DTYPES
@pytest.mark.parametrize("kept", [False, True], ids=["rounded", "masters"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_whole_copy_is_made_of_the_weights(dtype: np.dtype, kept: bool, backend: str) -> None:
    adam, count = ALGORITHMS["adam"], 1 << 20
    options = [{**option.resolve(adam.options, {}), MASTERS: kept}]
    segment, weights = SegmentState([count], dtype), np.ones(count, dtype)
    given = {"weights": weights, "gradient": np.ones(count, np.float32), "out": np.empty_like(weights)}
    apply(adam, options, segment, **given, backend=BACKENDS[backend])
    tracemalloc.start()
    try:
        apply(adam, options, segment, **given, backend=BACKENDS[backend])
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()


def test_a_master_weight_that_does_not_round_to_its_weight_becomes_it() -> None:
    weights = np.array([1, 2, 3, 0, -0.0, np.inf, np.inf, np.nan], np.float16)
    kept = np.array([1.0001, 2.1, 3, 1e-9, 5, np.inf, 70000, 1], np.float32)
    masters.settle(kept, weights)
    expected = np.array([1.0001, 2, 3, 1e-9, -0.0, np.inf, 70000, np.nan], np.float32)
    np.testing.assert_array_equal(kept, expected)


def test_buffers_must_be_of_the_segments_dtypes() -> None:
    sgd = ALGORITHMS["sgd"]
    for wrong in ("weights", "gradient", "out"):
        given = {"weights": np.ones(2, np.float16), "gradient": np.ones(2, np.float32), "out": np.ones(2, np.float16)}
        given[wrong] = np.ones(2, np.float32 if wrong != "gradient" else np.float16)
        with pytest.raises(ValueError, match=f"{wrong} must be float"):
            apply(sgd, [option.resolve(sgd.options, {})], SegmentState([2], np.float16), **given)
