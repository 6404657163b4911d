"""Every algorithm against the class of torch.optim that it stands for: weights, state and step counts.

A new algorithm joins by adding a row to TABLE.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.optim.backends import BACKENDS, COMPILED

from optd_server.optim import option
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.step import SegmentState, apply


@dataclass(frozen=True)
class Row:
    """An algorithm, torch's class, and option values of which every combination that is valid is tried."""

    name: str
    torch_class: type[torch.optim.Optimizer]
    grid: Mapping[str, tuple[Any, ...]]

    @property
    def algorithm(self) -> Algorithm:
        return ALGORITHMS[self.name]

    def combinations(self) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self.grid.values()):
            options = dict(zip(self.grid, values, strict=True))
            if option.check(self.algorithm, options) is None:
                yield options


FALSE_TRUE = (False, True)
# The second betas take the other formula of lerp.
ADAM_GRID = {
    "lr": (1e-2,),
    "betas": ((0.9, 0.999), (0.4, 0.95)),
    "weight_decay": (0.0, 0.1),
    "amsgrad": FALSE_TRUE,
    "maximize": FALSE_TRUE,
}
TABLE = [
    Row(
        "sgd",
        torch.optim.SGD,
        {
            "lr": (1e-2,),
            "momentum": (0.0, 0.9),
            "dampening": (0.0, 0.3),
            "weight_decay": (0.0, 0.1),
            "nesterov": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
    ),
    Row("adam", torch.optim.Adam, {**ADAM_GRID, "decoupled_weight_decay": FALSE_TRUE}),
    Row("adamw", torch.optim.AdamW, {**ADAM_GRID, "eps": (1e-3,)}),
]
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)

STEPS = 64
# 0-d, empty, one element, small ones in numbers (so that runs are short and many), one of more than a block.
SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (1,),
    *[(3, 5), (7,), (2, 1, 3)] * 3,
    (40, 30),
    (0, 4),
    (70_001,),
    *[(5,), (11, 2)] * 2,
]
NEVER, LATE = 4, 9  # a parameter that never has a gradient, and one whose first comes in the middle
LARGE = SHAPES.index((70_001,))  # takes every fourth step, or the tests would take four times as long

# numpy rounds a product before it adds it, torch does not: an ulp of the larger term for each operation.
# Where terms cancel, that is much more than an ulp of the result: therefore the bound is also relative to the
# largest element of the group.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-6}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Threads of torch's own gain nothing on arrays of this size, and wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def presence(step: int, rng: np.random.Generator) -> np.ndarray:
    """Which parameters have a gradient: all, contiguous ranges, every other, any."""
    count = len(SHAPES)
    number = np.arange(count)
    present = [
        np.ones(count, bool),
        (number < count // 2) ^ (step % 8 > 4),
        number % 2 == step // 4 % 2,
        rng.random(count) < 0.6,
    ][step % 4]
    present[NEVER] = False
    present[LATE] &= step > STEPS // 2
    present[LARGE] &= step % 4 == 0
    return present


class Pair:
    """A group in torch and in ours, which take the same steps: ours with both backends, of which the bits agree."""

    def __init__(self, row: Row, dtype: np.dtype, options: Mapping[str, Any], weights: list[np.ndarray]) -> None:
        self.algorithm = row.algorithm
        self.options = dict(options)
        self.parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
        self.optimizer = row.torch_class(self.parameters, foreach=False, **options)
        self.segment = SegmentState([w.size for w in weights], dtype)
        self.compiled = SegmentState([w.size for w in weights], dtype)
        self.weights = np.concatenate([w.reshape(-1) for w in weights])

    def step(self, gradient: np.ndarray, present: np.ndarray) -> None:
        group = self.optimizer.param_groups[0]
        group.update(self.options)
        for i, parameter in enumerate(self.parameters):
            part = torch.from_numpy(self.of(gradient, i)).reshape(parameter.shape)
            parameter.grad = part if present[i] else None
        self.optimizer.step()
        resolved = option.resolve(self.algorithm.options, self.options)
        out, twin = np.full_like(self.weights, np.nan), np.full_like(self.weights, np.nan)
        given = {"weights": self.weights, "gradient": gradient, "present": present}
        apply(self.algorithm, [resolved], self.segment, **given, out=out)
        apply(self.algorithm, [resolved], self.compiled, **given, out=twin, backend=COMPILED)
        np.testing.assert_array_equal(twin, out)
        self.weights = out

    def of(self, flat: np.ndarray, i: int) -> np.ndarray:
        start = self.segment.offsets[i]
        return flat[start : start + self.segment.sizes[i]]

    def assert_equal(self, tolerance: float, scale: float | None = None) -> None:
        """`scale`: what to take for the largest element of all arrays, instead of the largest of each."""
        for name, array in self.segment.state.items():
            np.testing.assert_array_equal(self.compiled.state[name], array)
        for i, parameter in enumerate(self.parameters):
            where = f"{self.algorithm.name} {self.options} parameter {i}"
            bounds = {"rtol": tolerance, "atol": tolerance * (scale or np.abs(self.weights).max())}
            assert_close(parameter.detach(), self.of(self.weights, i), bounds, f"weights of {where}")
            state = self.optimizer.state[parameter]
            if "step" in state:
                assert self.segment.steps[i] == state["step"].item()
            for name, array in self.segment.state.items():
                theirs = state.get(name)
                assert self.segment.started[name][i] == (theirs is not None), f"{name} of {where}"
                if theirs is not None:
                    bounds = {"rtol": tolerance, "atol": tolerance * (scale or np.abs(array).max())}
                    assert_close(theirs, self.of(array, i), bounds, f"{name} of {where}")


def assert_close(theirs: torch.Tensor, ours: np.ndarray, bounds: dict[str, float], what: str) -> None:
    expected = theirs.numpy().reshape(-1)
    assert ours.dtype == expected.dtype
    np.testing.assert_allclose(ours, expected, **bounds, err_msg=what)


def random_weights(dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


@DTYPES
@ROWS
def test_every_combination_of_options_trains_as_in_torch(row: Row, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    weights = random_weights(dtype, rng)
    pairs = [Pair(row, dtype, options, weights) for options in row.combinations()]
    size = pairs[0].segment.count
    # Windows on one stretch of noise: 64 draws of this size would take longer than the steps.
    noise = rng.standard_normal(size + STEPS * 100).astype(dtype)
    for step in range(STEPS):
        present = presence(step, rng)
        for pair in pairs:
            if step == STEPS // 3:
                pair.options["lr"] /= 10
            pair.step(noise[step * 100 : step * 100 + size], present)
        if step in (5, STEPS - 1):
            for pair in pairs:
                pair.assert_equal(TOLERANCE[dtype])


@DTYPES
def test_momentum_that_is_turned_on_off_and_on_again_goes_on_as_in_torch(dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    pair = Pair(TABLE[0], dtype, {"lr": 0.1, "momentum": 0.0, "dampening": 0.5}, random_weights(dtype, rng))
    for step in range(40):
        pair.options["momentum"] = 0.9 if 10 <= step < 20 or step >= 30 else 0.0
        gradient = rng.standard_normal(pair.segment.count).astype(dtype)
        pair.step(gradient, presence(step, rng))
        pair.assert_equal(TOLERANCE[dtype])


@DTYPES
@ROWS
def test_groups_that_lie_in_one_segment_are_torchs_groups(row: Row, dtype: np.dtype) -> None:
    """A group for each combination of options, those with momentum beside those without."""
    rng = np.random.default_rng(3)
    combinations = [options | {"lr": 0.01 * (1 + i % 3)} for i, options in enumerate(row.combinations())]
    shapes = [[(3,), (2, 2)], [(1,)], [(40,), (), (5,)]]
    members = [
        [torch.randn(shape, dtype=getattr(torch, dtype.name)) for shape in shapes[i % 3]]
        for i in range(len(combinations))
    ]
    optimizer = row.torch_class(
        [
            {"params": [torch.nn.Parameter(p) for p in own], **each}
            for own, each in zip(members, combinations, strict=True)
        ],
        foreach=False,
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    resolved = [option.resolve(row.algorithm.options, each) for each in combinations]
    weights = {backend: np.concatenate([p.detach().numpy().reshape(-1) for p in parameters]) for backend in BACKENDS}
    sizes, groups = [p.numel() for p in parameters], [len(own) for own in members]
    segments = {backend: SegmentState(sizes, dtype, groups=groups) for backend in BACKENDS}
    for step in range(12):
        present = rng.random(len(parameters)) < (1.0 if step % 3 else 0.6)
        gradient = rng.standard_normal(sum(sizes)).astype(dtype)
        parts = np.split(gradient, np.cumsum(sizes)[:-1])
        for parameter, part, there in zip(parameters, parts, present, strict=True):
            parameter.grad = torch.from_numpy(part).reshape(parameter.shape) if there else None
        optimizer.step()
        for name, backend in BACKENDS.items():
            given, out = weights[name], np.empty_like(weights[name])
            apply(
                row.algorithm,
                resolved,
                segments[name],
                weights=given,
                gradient=gradient,
                out=out,
                present=present,
                backend=backend,
            )
            weights[name] = out
    expected = np.concatenate([p.detach().numpy().reshape(-1) for p in parameters])
    for ours in weights.values():
        np.testing.assert_allclose(
            ours, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(expected).max()
        )


@ROWS
def test_overflow_and_nan_are_what_they_are_in_torch_without_a_warning(row: Row) -> None:
    dtype = np.dtype(np.float32)
    rng = np.random.default_rng(2)
    for options in row.combinations():
        pair = Pair(row, dtype, options, random_weights(dtype, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(3):
                gradient = rng.standard_normal(pair.segment.count).astype(dtype)
                gradient[::7] = (1e30, np.inf, np.nan)[step]
                pair.step(gradient, np.ones(len(SHAPES), bool))
                pair.assert_equal(1e-6, scale=1.0)


@ROWS
def test_names_and_defaults_are_torchs(row: Row) -> None:
    # What torch declares beside these says how it computes, not what.
    implementation = {"foreach", "fused", "capturable", "differentiable"}
    if row.name == "adamw":
        implementation.add("decoupled_weight_decay")  # always true: it is what AdamW is
    defaults = row.torch_class([torch.zeros(1)]).defaults
    expected = {name: value for name, value in defaults.items() if name not in implementation}
    assert option.resolve(row.algorithm.options, {}) == expected
    assert row.algorithm.title == row.torch_class.__name__


def boundary_values() -> list[float]:
    return [-1.0, -1e-300, -0.0, 0.0, 1e-300, 0.5, math.nextafter(1, 0), 1.0, 2.0, 1e300]


@ROWS
def test_ranges_are_torchs(row: Row) -> None:
    for declared in row.algorithm.options:
        for value in boundary_values() if declared.kind != "bool" else FALSE_TRUE:
            tried = [value] if declared.kind != "floats" else [(value, 0.5), (0.5, value)]
            for given in tried:
                accepted = option.check(row.algorithm, {declared.name: given}) is None
                assert accepted == torch_accepts(row, {declared.name: given}), f"{declared.name}={given}"


def test_the_nesterov_rule_is_torchs() -> None:
    for momentum, dampening in itertools.product((0.0, 0.9), (0.0, 0.1, -0.1)):
        options = {"nesterov": True, "momentum": momentum, "dampening": dampening}
        assert (option.check(ALGORITHMS["sgd"], options) is None) == torch_accepts(TABLE[0], options)


def torch_accepts(row: Row, options: Mapping[str, Any]) -> bool:
    try:
        row.torch_class([torch.zeros(1)], **options)
    except ValueError:
        return False
    return True


def test_every_algorithm_has_a_row() -> None:
    assert {row.name for row in TABLE} == set(ALGORITHMS)
