"""Lookahead on every algorithm: what a plain loop around torch's class gives, wherever the weights lie."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.server.optim.backends import BACKENDS
from tests.server.optim.test_torch import TABLE, Row

from optd_server.optim import option
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.step import SegmentState, apply
from optd_server.optim.touched import RowGradient, apply_touched

STEPS = 23
LOOKAHEAD = {"lookahead_steps": 4, "lookahead_alpha": 0.3}
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def resolved(row: Row, given: Mapping[str, Any]) -> dict[str, Any]:
    return {**option.resolve(row.algorithm.options, given), **LOOKAHEAD}


class Reference:
    """torch's class, and a copy of each parameter that it returns to."""

    def __init__(self, row: Row, weights: list[np.ndarray], given: Mapping[str, Any]) -> None:
        self.row = row
        self.parameters = [torch.nn.Parameter(torch.from_numpy(each.copy())) for each in weights]
        how = {"foreach": False} if "foreach" in row.of(self.parameters[:1]).defaults else {}
        self.optimizer = row.torch_class(self.parameters, **given, **how)
        self.slow = [parameter.detach().clone() for parameter in self.parameters]
        self.steps = [0] * len(weights)

    def step(self, gradients: list[np.ndarray | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            dense = None if gradient is None else torch.from_numpy(gradient)
            parameter.grad = dense if dense is None or not self.row.sparse else dense.to_sparse(1)
        self.optimizer.step()
        with torch.no_grad():
            for place, parameter in enumerate(self.parameters):
                self.steps[place] += parameter.grad is not None
                if parameter.grad is not None and self.steps[place] % LOOKAHEAD["lookahead_steps"] == 0:
                    self.slow[place] += LOOKAHEAD["lookahead_alpha"] * (parameter - self.slow[place])
                    parameter.copy_(self.slow[place])


@ROWS
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_around_torch_gives_the_same(row: Row, backend: str) -> None:
    rng = np.random.default_rng(0)
    weights = [np.asarray(rng.standard_normal(shape)) for shape in row.shapes]
    given = row.combinations()[-1]
    reference = Reference(row, weights, given)
    sizes = [each.size for each in weights]
    segment = SegmentState(sizes, np.float64, shapes=row.shapes)
    options = [resolved(row, given)]
    current = np.concatenate([each.reshape(-1) for each in weights])
    for step in range(STEPS):
        gradients = [np.asarray(rng.standard_normal(shape)) for shape in row.shapes]
        present = rng.random(len(sizes)) < 0.7 if step % 3 else np.ones(len(sizes), bool)
        reference.step([each if there else None for each, there in zip(gradients, present, strict=True)])
        out = np.full_like(current, np.nan)
        apply(
            row.algorithm,
            options,
            segment,
            weights=current,
            gradient=np.concatenate([each.reshape(-1) for each in gradients]),
            out=out,
            present=present,
            backend=BACKENDS[backend],
        )
        current = out
    expected = np.concatenate([each.detach().numpy().reshape(-1) for each in reference.parameters])
    slow = np.concatenate([each.numpy().reshape(-1) for each in reference.slow])
    bound = {"rtol": 1e-11, "atol": 1e-11 + row.slack}
    np.testing.assert_allclose(current, expected, **bound)
    started = np.repeat(segment.started["slow_weights"], sizes)
    np.testing.assert_allclose(segment.state["slow_weights"][started], slow[started], **bound)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_master_weights_are_what_returns(dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(300).astype(dtype)
    options = [{**option.resolve(ALGORITHMS["sgd"].options, {"lr": 1e-3}), "master_weights": True, **LOOKAHEAD}]
    segment = SegmentState([300], dtype)
    exact = weights.astype(np.float32)
    slow = exact.copy()
    for step in range(1, 10):
        gradient = rng.standard_normal(300).astype(np.float32)
        out = np.empty_like(weights)
        apply(ALGORITHMS["sgd"], options, segment, weights=weights, gradient=gradient, out=out)
        weights = out
        exact = exact - gradient * np.float32(1e-3)
        if step % 4 == 0:
            slow = slow + (exact - slow) * np.float32(0.3)
            exact = slow.copy()
        np.testing.assert_array_equal(segment.state["master_weights"], exact)
        np.testing.assert_array_equal(segment.state["slow_weights"], slow)
        assert weights.tobytes() == exact.astype(dtype).tobytes()


def test_weights_of_16_bits_are_what_slow_weights_round_to() -> None:
    weights = np.array([1.0, 2.0], np.float16)
    options = [{**option.resolve(ALGORITHMS["sgd"].options, {"lr": 1.0}), "lookahead_steps": 1, "lookahead_alpha": 0.5}]
    segment = SegmentState([2], np.float16)
    out = np.empty_like(weights)
    gradient = np.array([0.001, 1.0], np.float32)
    apply(ALGORITHMS["sgd"], options, segment, weights=weights, gradient=gradient, out=out)
    stepped = (weights - gradient).astype(np.float16).astype(np.float32)
    expected = weights + (stepped - weights) * np.float32(0.5)
    np.testing.assert_array_equal(segment.state["slow_weights"], expected)
    assert out.tobytes() == expected.astype(np.float16).tobytes()


@pytest.mark.parametrize("name", ["sgd", "sparse_adam", "adagrad"])
def test_rows_return_with_the_rest_of_their_parameter(name: str) -> None:
    """As a dense step of the same rows, where the algorithm leaves the others alone, with lookahead after it."""
    rng = np.random.default_rng(2)
    table, plain = rng.standard_normal((50, 3)), None
    algorithm = ALGORITHMS[name]
    options = option.resolve(algorithm.options, {})
    ahead, alone = SegmentState([150], np.float64), SegmentState([150], np.float64)
    weights, slow = table.reshape(-1).copy(), table.reshape(-1).copy()
    for step in range(1, 10):
        ids = np.sort(rng.choice(50, 5, replace=False))
        rows = [RowGradient(0, ids, rng.standard_normal((5, 3)))]
        plain, found = weights.copy(), weights.copy()
        for segment, given, out in ((alone, options, plain), (ahead, {**options, **LOOKAHEAD}, found)):
            apply_touched(
                algorithm,
                [given],
                segment,
                weights=weights,
                gradient=np.zeros(150),
                out=out,
                present=np.zeros(1, bool),
                rows=rows,
            )
        if step % 4 == 0:
            slow = slow + (plain - slow) * 0.3
            plain = slow.copy()
        np.testing.assert_array_equal(found, plain)
        weights = found


def test_turned_off_and_on_again_slow_weights_begin_anew() -> None:
    algorithm = ALGORITHMS["sgd"]
    off = option.resolve(algorithm.options, {"lr": 1.0})
    on = {**off, "lookahead_steps": 2, "lookahead_alpha": 0.5}
    segment, weights = SegmentState([1], np.float64), np.array([10.0])
    seen = []
    for options in (on, on, off, off, off, on):  # the last is the sixth step, of which two go
        out = np.empty_like(weights)
        apply(algorithm, [options], segment, weights=weights, gradient=np.ones(1), out=out)
        weights = out
        seen.append(float(out[0]))
    assert seen == [9.0, 9.0, 8.0, 7.0, 6.0, 5.5]
