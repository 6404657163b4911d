"""Steps that touch only what has a gradient: rows of tables as in torch, and other parameters as in a whole step."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.server.optim.backends import BACKENDS

from optd_server.optim import option, touched
from optd_server.optim.algorithm import Elementwise
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.segment import SegmentState
from optd_server.optim.step import apply
from optd_server.optim.touched import RowGradient, apply_touched

# Tables of several widths between parameters whose gradients are whole.
TABLES = (1, 2, 4, 6)
SHAPES = [(3,), (50, 4), (30,), (1200,), (6, 2, 3), (4, 0), (9, 7), (2, 2)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 1e-6), ("f8", 1e-12)])
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "maximize": True}),
    ("adagrad", {"lr": 0.1}),
    ("adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "maximize": True}),
    ("sparse_adam", {"lr": 0.1}),
    ("sparse_adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}),
]


class Twin:
    """One segment of all shapes, in two groups, beside torch's optimizer."""

    def __init__(self, name: str, options: dict[str, Any], dtype: str, backend: str) -> None:
        algorithm = ALGORITHMS[name]
        assert isinstance(algorithm, Elementwise)
        self.algorithm, self.backend = algorithm, BACKENDS[backend]
        self.rng = np.random.default_rng(0)
        self.segment = SegmentState(SIZES, dtype, shapes=SHAPES, groups=[2, 6])
        self.weights = self.rng.standard_normal(sum(SIZES)).astype(dtype)
        self.options = [option.resolve(algorithm.options, {**options, "lr": lr}) for lr in (options["lr"], 0.02)]
        parts = np.split(self.weights.copy(), np.cumsum(SIZES)[:-1])
        self.parameters = [
            torch.nn.Parameter(torch.from_numpy(part).reshape(shape)) for part, shape in zip(parts, SHAPES, strict=True)
        ]
        groups = [{"params": self.parameters[:2]}, {"params": self.parameters[2:], "lr": 0.02}]
        self.optimizer = getattr(torch.optim, algorithm.title)(groups, **options)
        self.sparse_only = algorithm.rows is not None and algorithm.rows.only

    def step(self) -> None:
        """A random one: some tables have rows, some others whole gradients."""
        gradient = np.full_like(self.weights, np.nan)
        present = np.zeros(len(SHAPES), np.bool_)
        rows = []
        for number, shape in enumerate(SHAPES):
            here = slice(sum(SIZES[:number]), sum(SIZES[: number + 1]))
            parameter = self.parameters[number]
            parameter.grad = None
            if number in TABLES and self.rng.random() < 0.8:
                ids = np.flatnonzero(self.rng.random(shape[0]) < self.rng.choice([0, 0.2, 1]))
                values = self.rng.standard_normal((len(ids), *shape[1:])).astype(self.weights.dtype)
                rows.append(RowGradient(number, ids, values.reshape(len(ids), int(np.prod(shape[1:])))))
                parameter.grad = torch.sparse_coo_tensor(ids[None], values, shape, check_invariants=True)
            elif not self.sparse_only and self.rng.random() < 0.5:
                present[number] = True
                gradient[here] = self.rng.standard_normal(SIZES[number])
                parameter.grad = torch.from_numpy(gradient[here].copy()).reshape(shape)
        self.optimizer.step()
        out = self.weights.copy()
        apply_touched(
            self.algorithm,
            self.options,
            self.segment,
            weights=self.weights,
            gradient=gradient,
            out=out,
            present=present,
            rows=rows,
            backend=self.backend,
        )
        self.weights = out

    def assert_equal(self, tolerance: float) -> None:
        for number, parameter in enumerate(self.parameters):
            here = slice(sum(SIZES[:number]), sum(SIZES[: number + 1]))
            state = self.optimizer.state[parameter]
            pairs = [(self.weights[here], parameter)]
            pairs += [(self.segment.of(name, number), state[name]) for name in self.segment.state if name in state]
            for ours, theirs in pairs:
                expected = theirs.detach().numpy().reshape(-1)
                np.testing.assert_allclose(ours.reshape(-1), expected, rtol=tolerance, atol=tolerance)
            assert self.segment.steps[number] == state.get("step", self.segment.steps[number])


@DTYPES
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_rows_are_updated_as_in_torch(name, options, backend, dtype, tolerance):
    twin = Twin(name, options, dtype, backend)
    for _ in range(100):
        twin.step()
    twin.assert_equal(tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_many_are_gathered_a_part_at_a_time(monkeypatch, backend):
    monkeypatch.setattr(touched, "GATHERED", 64)
    twin = Twin("adagrad", {"lr": 0.1}, "f8", backend)
    for _ in range(5):
        twin.step()
    twin.assert_equal(1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["adam", "sgd", "asgd"])
def test_whole_gradients_give_the_bits_of_a_whole_step(name, backend):
    algorithm = ALGORITHMS[name]
    assert isinstance(algorithm, Elementwise)
    rng = np.random.default_rng(1)
    options = [option.resolve(algorithm.options, {"lr": 0.1})]
    whole, part = (SegmentState(SIZES, "f4", shapes=SHAPES) for _ in range(2))
    weights = rng.standard_normal(sum(SIZES)).astype("f4")
    for _ in range(10):
        given = {
            "weights": weights,
            "gradient": rng.standard_normal(sum(SIZES)).astype("f4"),
            "present": rng.random(len(SHAPES)) < 0.4,
            "backend": BACKENDS[backend],
        }
        expected, found = np.empty_like(weights), weights.copy()
        apply(algorithm, options, whole, out=expected, **given)
        apply_touched(algorithm, options, part, out=found, **given)
        np.testing.assert_array_equal(found, expected)
        weights = found
    assert np.array_equal(part.steps, whole.steps)
    for field, array in whole.state.items():
        np.testing.assert_array_equal(part.state[field], array)


def test_what_has_no_gradient_is_not_even_read():
    algorithm = ALGORITHMS["sgd"]
    assert isinstance(algorithm, Elementwise)
    segment = SegmentState([6, 4], "f4", shapes=[(3, 2), (4,)])
    weights, out = np.full(10, np.nan, "f4"), np.full(10, 7, "f4")
    weights[2:4] = 1
    rows = [RowGradient(0, np.array([1]), np.ones((1, 2), "f4"))]
    options = [option.resolve(algorithm.options, {"lr": 0.5})]
    absent = np.zeros(2, np.bool_)
    apply_touched(algorithm, options, segment, weights=weights, gradient=weights, out=out, present=absent, rows=rows)
    assert out.tolist() == [7, 7, 0.5, 0.5, 7, 7, 7, 7, 7, 7]
    assert segment.steps.tolist() == [1, 0]


def test_a_table_without_columns_counts_its_steps():
    algorithm = ALGORITHMS["sparse_adam"]
    assert isinstance(algorithm, Elementwise)
    segment = SegmentState([0], "f4", shapes=[(4, 0)])
    nothing = np.empty(0, "f4")
    rows = [RowGradient(0, np.array([1, 3]), np.empty((2, 0), "f4"))]
    options = [option.resolve(algorithm.options, {})]
    given = {"weights": nothing, "gradient": nothing, "out": np.empty(0, "f4"), "present": np.zeros(1, np.bool_)}
    apply_touched(algorithm, options, segment, rows=rows, **given)
    assert segment.steps.tolist() == [1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", [{"master_weights": True}, {}], ids=str)
def test_rows_of_16_bits_are_those_of_a_whole_step(options, dtype, backend):
    """Of SGD without momentum: there a gradient of zero changes nothing."""
    algorithm = ALGORITHMS["sgd"]
    assert isinstance(algorithm, Elementwise)
    rng = np.random.default_rng(3)
    resolved = [{**option.resolve(algorithm.options, {"lr": 0.01}), **options}]
    whole, part = (SegmentState(SIZES, dtype, shapes=SHAPES) for _ in range(2))
    weights = rng.standard_normal(sum(SIZES)).astype(dtype)
    for _ in range(10):
        gradient, present, rows = np.zeros(sum(SIZES), "f4"), np.zeros(len(SHAPES), np.bool_), []
        for number in TABLES:
            ids = np.flatnonzero(rng.random(SHAPES[number][0]) < 0.3)
            values = rng.standard_normal((len(ids), int(np.prod(SHAPES[number][1:])))).astype("f4")
            start = sum(SIZES[:number])
            gradient[start : start + SIZES[number]].reshape(SHAPES[number][0], -1)[ids] = values
            rows.append(RowGradient(number, ids, values))
        expected, found = np.empty_like(weights), weights.copy()
        touched_ones = np.isin(np.arange(len(SHAPES)), TABLES)
        given = {"weights": weights, "gradient": gradient, "backend": BACKENDS[backend]}
        apply(algorithm, resolved, whole, out=expected, present=touched_ones, **given)
        apply_touched(algorithm, resolved, part, out=found, present=present, rows=rows, **given)
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
        weights = found
    assert ("master_weights" in part.state) is bool(options)
    for field, array in whole.state.items():
        np.testing.assert_array_equal(part.state[field], array)
