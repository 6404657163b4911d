"""Every algorithm against the class of torch.optim that it stands for: weights, state and step counts.

A new algorithm joins by adding a row to TABLE.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tests.server.optim.assign import Assign
from tests.server.optim.backends import BACKENDS
from tests.server.optim.delayed_nesterov import DelayedNesterov
from tests.server.optim.lion import Lion

from optd_server.optim import option, runs
from optd_server.optim.algorithm import Algorithm, Iterative, Vector
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.option import Option, OptionValue
from optd_server.optim.step import SegmentState, apply

# 0-d, empty, one element, small ones, one of more than a block.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 5), (7,), (2, 1, 3), (11, 2), (40, 30), (5003,))
MATRICES = ((3, 5), (1, 1), (7, 1), (1, 9), (4, 4), (11, 2), (6, 7), (8, 8))
NEVER, LATE = 4, 6  # a parameter that never has a gradient, and one whose first comes in the middle


@dataclass(frozen=True)
class Row:
    """An algorithm, torch's class, and option values of which every combination that is valid is tried."""

    name: str
    torch_class: type[torch.optim.Optimizer]
    grid: Mapping[str, tuple[Any, ...]]
    shapes: Sequence[tuple[int, ...]] = SHAPES
    condition: Callable[[Mapping[str, Any]], float] = lambda _: 1
    """How much some options magnify what rounding makes different: what the tolerance is multiplied by. Say why."""

    slack: float = 0.0
    """How far weights may lie apart besides. Say why."""

    sparse: bool = False
    """Whether torch's class takes gradients of rows only."""

    @property
    def algorithm(self) -> Algorithm:
        return ALGORITHMS[self.name]

    def of(self, parameters: Sequence[torch.Tensor] = (), **options: Any) -> torch.optim.Optimizer:
        """An optimizer of torch's; without parameters, of one that it takes."""
        return self.torch_class(parameters or [torch.zeros(self.shapes[-1], dtype=torch.float64)], **options)

    def learning(self, lr: float) -> dict[str, float]:
        """A learning rate, for an algorithm that has one."""
        return {"lr": lr} if "lr" in self.grid else {}

    def combinations(self) -> list[dict[str, Any]]:
        every = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return [options for options in every if option.check(self.algorithm, options) is None]


FALSE_TRUE = (False, True)
PENALTY = (0.0, 0.1)
# The second betas take the other formula of lerp.
BETAS = ((0.9, 0.999), (0.4, 0.95))
ADAM_GRID = {
    "lr": (1e-2,),
    "betas": BETAS,
    "eps": (1e-8, 1e-3),
    "weight_decay": PENALTY,
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
            "weight_decay": PENALTY,
            "nesterov": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
    ),
    Row("adam", torch.optim.Adam, {**ADAM_GRID, "decoupled_weight_decay": FALSE_TRUE}),
    Row("adamw", torch.optim.AdamW, ADAM_GRID),
    Row(
        "sparse_adam",
        torch.optim.SparseAdam,
        {"lr": (1e-2,), "betas": BETAS, "eps": (1e-8, 1e-3), "maximize": FALSE_TRUE},
        shapes=tuple(shape for shape in SHAPES if shape),
        sparse=True,
    ),
    Row(
        "adadelta",
        torch.optim.Adadelta,
        {
            "lr": (1.0, 0.1),
            "rho": (0.9, 1.0),
            "eps": (1e-6, 1e-2),
            "weight_decay": PENALTY,
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "adamax",
        torch.optim.Adamax,
        {"lr": (2e-3,), "betas": BETAS, "eps": (1e-8, 1e-2), "weight_decay": PENALTY, "maximize": FALSE_TRUE},
    ),
    Row(
        "nadam",
        torch.optim.NAdam,
        {
            "lr": (1e-2,),
            "betas": (*BETAS, (0.0, 0.9)),
            "eps": (1e-8, 1e-3),
            "weight_decay": PENALTY,
            "momentum_decay": (4e-3, 0.5),
            "decoupled_weight_decay": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "asgd",
        torch.optim.ASGD,
        {
            "lr": (1e-2,),
            "lambd": (1e-4, 0.1),
            "alpha": (0.75, 0.0),
            "t0": (1e6, 5.0),
            "weight_decay": PENALTY,
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "adafactor",
        torch.optim.Adafactor,
        {
            "lr": (1e-2,),
            "beta2_decay": (-0.8, 0.0),
            "eps": ((None, 1e-3), (1e-2, 0.1)),
            "d": (1.0, 2.0),
            "weight_decay": PENALTY,
            "maximize": FALSE_TRUE,
        },
        # Of no elements torch's own divides by zero.
        shapes=tuple(shape for shape in SHAPES if 0 not in shape),
    ),
    Row(
        "muon",
        torch.optim.Muon,
        {
            "lr": (1e-2,),
            "weight_decay": (0.1,),
            "momentum": (0.95, 0.0),
            "nesterov": FALSE_TRUE,
            "ns_coefficients": ((3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)),
            "eps": (1e-7,),
            "ns_steps": (5, 1),
            "adjust_lr_fn": (None, "match_rms_adamw"),
        },
        shapes=MATRICES,
        # Of two numbers that float32 hardly tells apart, bfloat16 may make two that differ by 2**-8: in 100 steps of
        # 0.01, some times. A test of its own looks at each step.
        slack=5e-4,
    ),
    Row(
        "radam",
        torch.optim.RAdam,
        {
            "lr": (1e-2,),
            "betas": BETAS,
            "eps": (1e-8, 1e-3),
            "weight_decay": PENALTY,
            "decoupled_weight_decay": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "rmsprop",
        torch.optim.RMSprop,
        {
            "lr": (1e-2,),
            "alpha": (0.99, 0.4),
            "eps": (1e-8, 1e-2),
            "weight_decay": PENALTY,
            "momentum": (0.0, 0.9),
            "centered": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
        # Over so few gradients the variance is often a small difference of two averages.
        condition=lambda options: 100 if options.get("centered") and options["alpha"] < 0.5 else 1,
    ),
    Row(
        "adagrad",
        torch.optim.Adagrad,
        {
            "lr": (1e-2,),
            "lr_decay": (0.0, 0.1),
            "weight_decay": PENALTY,
            # The same for all groups, as torch takes it from its constructor only: a test of its own has another.
            "initial_accumulator_value": (0.0,),
            "eps": (1e-10, 1e-2),
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "rprop",
        torch.optim.Rprop,
        {
            "lr": (1e-2, 1.0),
            "etas": ((0.5, 1.2), (0.9, 3.0)),
            "step_sizes": ((1e-6, 50), (5e-3, 0.1), (0.2, 0.1), (0.0, math.inf)),
            "maximize": FALSE_TRUE,
        },
    ),
    Row(
        "lion",
        Lion,
        {"lr": (1e-3,), "betas": ((0.9, 0.99), (0.0, 0.5)), "weight_decay": PENALTY, "maximize": FALSE_TRUE},
    ),
    Row(
        "delayed_nesterov",
        DelayedNesterov,
        {"lr": (1e-2,), "momentum": (0.0, 0.9), "delay": (1, 2, 5), "activation": (0.0, 0.2, 0.7)},
    ),
    Row("assign", Assign, {}),
]
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
# For tests that take long: one algorithm in the default suite, and all others among the slow tests.
SGD_AND_SLOW = [pytest.param(row, id=row.name, marks=() if row.name == "sgd" else pytest.mark.slow) for row in TABLE]

STEPS = 100
BLOCK = 2048

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


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of which a parameter takes several without taking the time of a million elements."""
    with mock.patch.object(runs, "BLOCK", BLOCK):
        yield


def presence(step: int, groups: int, rng: np.random.Generator, shapes: int = len(SHAPES)) -> np.ndarray:
    """Which parameters have a gradient, shape (groups, shapes): all, contiguous ranges, every other, any."""
    count = groups * shapes
    number = np.arange(count)
    present = [
        np.ones(count, bool),
        (number < count // 2) ^ (step % 8 > 4),
        number % 2 == step // 4 % 2,
        rng.random(count) < 0.6,
    ][step % 4].reshape(groups, shapes)
    present[:, NEVER] = False
    present[:, LATE] &= step > STEPS // 2
    return present


class Twins:
    """Groups in torch and in ours, which take the same steps: ours with both backends, of which the bits agree."""

    def __init__(
        self,
        row: Row,
        dtype: np.dtype,
        groups: Sequence[Mapping[str, Any]],
        rng: np.random.Generator,
        shapes: Sequence[tuple[int, ...]] = (),
        **defaults: Any,
    ) -> None:
        self.algorithm, self.dtype = row.algorithm, dtype
        shapes = shapes or row.shapes
        self.groups = [{**defaults, **options} for options in groups]
        self.slack, self.sparse = row.slack, row.sparse
        self.conditions = [row.condition(options) for options in groups]
        self.weights = rng.standard_normal(len(groups) * sum(map(math.prod, shapes))).astype(dtype)
        sizes = [math.prod(shape) for shape in shapes] * len(groups)
        counts = [len(shapes)] * len(groups)
        self.segments = {
            name: SegmentState(sizes, dtype, shapes=list(shapes) * len(groups), groups=counts) for name in BACKENDS
        }
        self.segment = self.segments["numpy"]
        self.parameters = [
            torch.nn.Parameter(torch.from_numpy(part.copy()).reshape(shape))
            for part, shape in zip(self.split(self.weights), list(shapes) * len(groups), strict=True)
        ]
        entries = [
            {"params": own, **options} for own, options in zip(self.by_group(self.parameters), groups, strict=True)
        ]
        how = {"foreach": False} if "foreach" in row.of(self.parameters[:1]).defaults else {}
        self.optimizer = row.torch_class(entries, **how, **defaults)
        self.resolve()

    def set(self, **options: Any) -> None:
        """Change options of all groups."""
        for ours, theirs in zip(self.groups, self.optimizer.param_groups, strict=True):
            ours.update(options)
            theirs.update(options)
        self.resolve()

    def resolve(self) -> None:
        self.resolved: list[Mapping[str, OptionValue]] = [
            option.resolve(self.algorithm.options, options) for options in self.groups
        ]

    def step(self, gradient: Vector, present: np.ndarray | None = None) -> None:
        everywhere = np.ones(len(self.parameters), bool)
        present = everywhere if present is None else present.reshape(-1)
        for parameter, part, there in zip(self.parameters, self.split(gradient), present, strict=True):
            gradient_here = torch.from_numpy(part).reshape(parameter.shape)
            parameter.grad = (gradient_here.to_sparse(1) if self.sparse else gradient_here) if there else None
        self.optimizer.step()
        outs = {}
        for name, backend in BACKENDS.items():
            out = outs[name] = np.full_like(self.weights, np.nan)
            apply(
                self.algorithm,
                self.resolved,
                self.segments[name],
                weights=self.weights,
                gradient=gradient,
                out=out,
                present=present,
                backend=backend,
            )
        self.weights = outs["numpy"]
        np.testing.assert_array_equal(outs["numba"], self.weights)

    def split(self, flat: Vector) -> list[Vector]:
        return np.split(flat, self.segment.offsets[1:])

    def by_group(self, of_parameters: list[Any]) -> list[list[Any]]:
        count = len(of_parameters) // len(self.groups)
        return [of_parameters[start : start + count] for start in range(0, len(of_parameters), count)]

    def assert_equal(self, tolerance: float, scale: float | None = None) -> None:
        """Compare all with torch's.

        `tolerance` is relative to each number, or to the largest of the group's array; `scale`: or to this instead.
        """
        for name, array in self.segment.state.items():
            np.testing.assert_array_equal(self.segments["numba"].state[name], array)
        theirs = [parameter.detach().numpy().reshape(-1) for parameter in self.parameters]
        self._assert_close("weights", theirs, self.split(self.weights), tolerance, scale)
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        for count, state in zip(self.segment.steps, states, strict=True):
            assert count == state.get("step", count)
        for name, array in self.segment.state.items():
            # Adagrad's exists in torch before the first gradient, with what it begins with.
            has = np.array([state.get(name) is not None and state.get("step", 1) > 0 for state in states])
            np.testing.assert_array_equal(self.segment.started[name], has, name)
            parts = [self.segment.of(name, place).reshape(-1) for place in range(len(states))]
            ours = [part[: len(part) * there] for part, there in zip(parts, has, strict=True)]
            theirs = [
                state[name].numpy().reshape(-1) if there else np.empty(0, array.dtype)
                for state, there in zip(states, has, strict=True)
            ]
            self._assert_close(name, theirs, ours, tolerance, scale)

    def _assert_close(
        self, what: str, theirs: list[Vector], ours: list[Vector], tolerance: float, scale: float | None
    ) -> None:
        by_group = zip(self.groups, self.conditions, self.by_group(theirs), self.by_group(ours), strict=True)
        for options, condition, expected, found in by_group:
            a, b = np.concatenate(expected), np.concatenate(found)
            assert a.dtype == b.dtype
            if len(a):
                rtol = tolerance * condition
                atol = rtol * (scale or np.abs(b).max()) + self.slack * (what == "weights")
                np.testing.assert_allclose(b, a, rtol=rtol, atol=atol, err_msg=f"{what} under {options}")


@DTYPES
@pytest.mark.parametrize("row", SGD_AND_SLOW)
def test_every_combination_of_options_trains_as_in_torch(row: Row, dtype: np.dtype) -> None:
    """A group for each combination, all in one segment, those with momentum beside those without."""
    rng = np.random.default_rng(0)
    twins = Twins(row, dtype, row.combinations(), rng)
    size = twins.segment.count
    # Windows on one stretch of noise: a draw of this size takes longer than the step.
    noise = rng.standard_normal(size + STEPS * 100).astype(dtype)
    for step in range(STEPS):
        if step == STEPS // 3:
            twins.set(**row.learning(1e-3))
        twins.step(noise[step * 100 : step * 100 + size], presence(step, len(twins.groups), rng, len(row.shapes)))
        if step in (5, STEPS - 1):
            twins.assert_equal(TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("row", [each for each in SGD_AND_SLOW if each.id != "muon"])
def test_a_parameter_of_more_than_a_block_is_one_parameter_on_several_threads(row: Row, dtype: np.dtype) -> None:
    rng = np.random.default_rng(4)
    twins = Twins(row, dtype, [row.learning(0.01)], rng, [(70_001,), (3,)])
    with mock.patch.object(runs, "BLOCK", 65_536):
        for _ in range(4):
            twins.step(rng.standard_normal(70_004).astype(dtype))
    twins.assert_equal(TOLERANCE[dtype])


@DTYPES
def test_momentum_that_is_turned_on_off_and_on_again_goes_on_as_in_torch(dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    twins = Twins(TABLE[0], dtype, [{"lr": 0.1, "momentum": 0.0, "dampening": 0.5}], rng)
    for step in range(40):
        twins.set(momentum=0.9 if 10 <= step < 20 or step >= 30 else 0.0)
        twins.step(rng.standard_normal(twins.segment.count).astype(dtype), presence(step, 1, rng))
        twins.assert_equal(TOLERANCE[dtype])


@DTYPES
def test_adagrads_sum_may_begin_with_another_number(dtype: np.dtype) -> None:
    row = next(row for row in TABLE if row.name == "adagrad")
    rng = np.random.default_rng(5)
    twins = Twins(row, dtype, [{"lr": 0.1}, {"lr": 0.01, "weight_decay": 0.1}], rng, initial_accumulator_value=0.1)
    for step in range(20):
        twins.step(rng.standard_normal(twins.segment.count).astype(dtype), presence(step, 2, rng))
    twins.assert_equal(TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(200, 100), (64, 256)], ids=str)
def test_muon_rounds_large_matrices_as_bfloat16_does(shape: tuple[int, int]) -> None:
    """A sum of many terms that is added up in another order may round to the neighbour in bfloat16: 2**-8 of it.

    The iterations carry that on. It stays far below what they leave undone themselves: singular values of 0.7 to 1.2.
    """
    row = next(row for row in TABLE if row.name == "muon")
    rng = np.random.default_rng(6)
    twins = Twins(row, np.dtype(np.float32), [{"lr": 1.0, "weight_decay": 0.0}], rng, [shape])
    adjusted = math.sqrt(max(1, shape[0] / shape[1]))
    for _ in range(3):
        before = twins.weights
        theirs = twins.parameters[0].detach().numpy().copy().reshape(-1)
        twins.step(rng.standard_normal(twins.segment.count).astype(np.float32))
        step = (before - twins.weights) / adjusted
        expected = (theirs - twins.parameters[0].detach().numpy().reshape(-1)) / adjusted
        np.testing.assert_allclose(step, expected, rtol=0, atol=2**-7)
        assert np.linalg.norm(step - expected) < 0.01 * np.linalg.norm(expected)
        singular = np.linalg.svd(step.reshape(shape), compute_uv=False)
        assert 0.5 < singular.min() <= singular.max() < 1.5


@ROWS
def test_overflow_and_nan_are_what_they_are_in_torch_without_a_warning(row: Row) -> None:
    rng = np.random.default_rng(2)
    twins = Twins(row, np.dtype(np.float32), row.combinations(), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            gradient = rng.standard_normal(twins.segment.count).astype(np.float32)
            gradient[::7] = (1e30, np.inf, np.nan)[step]
            twins.step(gradient)
            twins.assert_equal(1e-6, scale=10.0)


@ROWS
def test_names_and_defaults_are_torchs(row: Row) -> None:
    # What torch declares beside these says how it computes, not what.
    implementation = {"foreach", "fused", "capturable", "differentiable"}
    if row.name == "adamw":
        implementation.add("decoupled_weight_decay")  # always true: it is what AdamW is
    defaults = row.of().defaults
    expected = {name: value for name, value in defaults.items() if name not in implementation}
    assert option.resolve(row.algorithm.options, {}) == expected
    assert row.algorithm.title == row.torch_class.__name__


NUMBERS = [-1.0, -1e-300, -0.0, 0.0, 1e-300, 0.5, math.nextafter(1, 0), 1.0, math.nextafter(1, 2), 2.0, 1e300]
WHOLE = [-1, 0, 1, 2]


def tried(declared: Option) -> Iterator[Any]:
    """Values of an option on both sides of all bounds."""
    match declared.kind:
        case "bool":
            yield from FALSE_TRUE
        case "floats":
            assert isinstance(declared.default, tuple)
            for i, value in itertools.product(range(len(declared.default)), NUMBERS):
                yield (*declared.default[:i], value, *declared.default[i + 1 :])
        case "int":
            yield from WHOLE
        case "text":
            yield from (*declared.choices, "other", *([None] if declared.nullable else []))
        case _:
            yield from (*NUMBERS, *WHOLE)


@ROWS
def test_ranges_are_torchs(row: Row) -> None:
    for declared in row.algorithm.options:
        for given in tried(declared):
            accepted = option.check(row.algorithm, {declared.name: given}) is None
            assert accepted == torch_accepts(row, {declared.name: given}), f"{declared.name}={given}"


def test_the_nesterov_rule_is_torchs() -> None:
    for momentum, dampening in itertools.product((0.0, 0.9), (0.0, 0.1, -0.1)):
        options = {"nesterov": True, "momentum": momentum, "dampening": dampening}
        assert (option.check(ALGORITHMS["sgd"], options) is None) == torch_accepts(TABLE[0], options)


def torch_accepts(row: Row, options: Mapping[str, Any]) -> bool:
    try:
        row.of(**options)
    except (ValueError, TypeError, IndexError):
        return False
    return True


def test_every_algorithm_has_a_row() -> None:
    """But for those that ask for several gradients in a step: see test_lbfgs."""
    asking = {name for name, algorithm in ALGORITHMS.items() if isinstance(algorithm, Iterative)}
    assert {row.name for row in TABLE} == set(ALGORITHMS) - asking
    assert asking == {"lbfgs"}
