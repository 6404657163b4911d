"""Training through the service against training with torch: every combination of options, weights and state.

A job's groups have a combination each, so that a few jobs cover them all. A new algorithm joins by adding a row.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from tests.client.torch.classes import NOT_IN_TORCH

import optd.torch

Shapes = tuple[tuple[int, ...], ...]
SHAPES: Shapes = ((4, 3), (), (7,), (0,), (2, 1, 3))
FILLED: Shapes = ((4, 3), (), (7,), (3,), (2, 1, 3))
MATRICES: Shapes = ((4, 3), (1, 1), (7, 2), (2, 2), (2, 5))


class Row(NamedTuple):
    """An algorithm, and option values of which torch is asked which combinations are valid."""

    name: str
    grid: Mapping[str, tuple[Any, ...]]
    shapes: Shapes = SHAPES
    sparse: bool = False
    """Whether it takes sparse gradients only."""

    @property
    def torch_class(self) -> type[torch.optim.Optimizer]:
        return NOT_IN_TORCH.get(self.name) or getattr(torch.optim, self.name)

    @property
    def our_class(self) -> type[torch.optim.Optimizer]:
        return getattr(optd.torch, self.name)

    def combinations(self) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self.grid.values()):
            options = dict(zip(self.grid, values, strict=True))
            try:
                self.torch_class([torch.zeros(self.shapes[0])], **options)
            except ValueError:
                continue
            yield options


FALSE_TRUE = (False, True)
PENALTY = (0.0, 0.1)
# The second betas take the other formula of torch's lerp.
BETAS = ((0.9, 0.999), (0.4, 0.95))
ADAM_GRID = {
    "lr": (1e-2,),
    "betas": BETAS,
    "weight_decay": PENALTY,
    "amsgrad": FALSE_TRUE,
    "maximize": FALSE_TRUE,
}
TABLE = [
    Row(
        "SGD",
        {
            "lr": (1e-2,),
            "momentum": (0.0, 0.9),
            "dampening": (0.0, 0.3),
            "weight_decay": PENALTY,
            "nesterov": FALSE_TRUE,
            "maximize": FALSE_TRUE,
        },
    ),
    Row("Adam", {**ADAM_GRID, "decoupled_weight_decay": FALSE_TRUE}),
    Row("AdamW", {**ADAM_GRID, "eps": (1e-3,)}),
    # torch makes no sparse gradient of a tensor without a dimension or without elements.
    Row("SparseAdam", {"lr": (1e-2,), "betas": BETAS, "eps": (1e-8, 1e-3)}, FILLED[:1] + FILLED[2:] + ((2,),), True),
    # Of these the server's own tests have all combinations: here are some, with each option on and off.
    Row("Adadelta", {"lr": (1.0,), "rho": (0.9, 1.0), "weight_decay": PENALTY}),
    Row("Adamax", {"lr": (1e-2,), "betas": BETAS, "weight_decay": PENALTY}),
    Row("Adagrad", {"lr": (1e-2,), "lr_decay": (0.0, 0.1), "weight_decay": PENALTY}),
    Row("Rprop", {"lr": (1e-2, 1.0), "step_sizes": ((1e-6, 50), (0.0, math.inf))}),
    Row("RAdam", {"lr": (1e-2,), "weight_decay": PENALTY, "decoupled_weight_decay": FALSE_TRUE}),
    Row("NAdam", {"lr": (1e-2,), "momentum_decay": (4e-3, 0.5), "decoupled_weight_decay": FALSE_TRUE}),
    Row("ASGD", {"lr": (1e-2,), "lambd": (1e-4, 0.1), "t0": (1e6, 5.0)}),
    # Of no elements torch's own divides by zero.
    Row("Adafactor", {"lr": (1e-2,), "d": (1.0, 2.0), "weight_decay": PENALTY}, FILLED),
    Row("Muon", {"lr": (1e-2,), "nesterov": FALSE_TRUE, "adjust_lr_fn": (None, "match_rms_adamw")}, MATRICES),
    Row("RMSprop", {"lr": (1e-2,), "momentum": (0.0, 0.9), "centered": FALSE_TRUE}),
    Row("Lion", {"lr": (1e-3,), "weight_decay": PENALTY, "maximize": FALSE_TRUE}),
    Row("DelayedNesterov", {"lr": (1e-2,), "delay": (1, 3), "activation": (0.0, 0.2)}),
]

STEPS = 52
GROUPS = 4
NEVER, LATE = 2, 4  # a parameter that never has a gradient, and one whose first comes in the middle
EMPTY = 3  # always has a gradient: it counts as present wherever a gradient next to it is
TRANSPOSED = 0

# As in tests/server/optim/test_torch.py: an ulp of the larger term for each operation that numpy rounds and torch does
# not; where terms cancel, that is relative to the largest element of the group.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def parameters(dtype: torch.dtype, shapes: Shapes) -> list[torch.nn.Parameter]:
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    made[TRANSPOSED] = torch.randn(shapes[TRANSPOSED][::-1], dtype=dtype).t()
    return [torch.nn.Parameter(tensor) for tensor in made]


class Pair:
    """The same groups in torch and in a job, which take the same steps."""

    def __init__(self, row: Row, dtype: torch.dtype, combinations: list[dict[str, Any]], serve: Callable) -> None:
        ours = [parameters(dtype, row.shapes) for _ in combinations]
        theirs = [[torch.nn.Parameter(p.detach().clone()) for p in group] for group in ours]
        self.theirs, self.ours = (
            optimizer([{"params": p, **options} for p, options in zip(groups, combinations, strict=True)])
            for optimizer, groups in ((row.torch_class, theirs), (lambda g: serve(row.our_class, g), ours))
        )
        self.what = f"{row.name} {dtype} {combinations}"
        self.sparse = row.sparse

    def step(self, number: int) -> None:
        rows = zip(self.theirs.param_groups, self.ours.param_groups, strict=True)
        for index, (there, here) in enumerate(rows):
            if number == STEPS // 3:
                there["lr"] = here["lr"] = here["lr"] / 10
            for place, (p, q) in enumerate(zip(there["params"], here["params"], strict=True)):
                late = place == LATE and number <= STEPS // 2
                absent = place != EMPTY and (place == NEVER or late or (number + place + index) % 4 == 0)
                p.grad = None if absent else self.gradient(p)
                q.grad = None if p.grad is None else p.grad.clone()
        self.theirs.step()
        self.ours.step()

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        made = torch.randn_like(parameter)
        if not self.sparse:
            return made
        made[torch.rand(len(made)) < 0.5] = 0
        return made.to_sparse(1)

    def assert_equal(self) -> None:
        for there, here in zip(self.theirs.param_groups, self.ours.param_groups, strict=True):
            assert_all_close(here["params"], there["params"], f"weights of {self.what}")
        there, here = self.theirs.state_dict(), self.ours.state_dict()
        assert here["param_groups"] == there["param_groups"]
        assert here["state"].keys() == there["state"].keys()
        for index, expected in there["state"].items():
            assert list(here["state"][index]) == list(expected), f"state {index} of {self.what}"
        for group in there["param_groups"]:
            states = [(here["state"][i], there["state"][i]) for i in group["params"] if i in there["state"]]
            for field in {field for _, expected in states for field in expected}:
                pairs = [(found[field], expected[field]) for found, expected in states if field in expected]
                assert_all_close(*zip(*pairs, strict=True), f"{field} of {self.what}")


def assert_all_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], what: str) -> None:
    if not all(isinstance(tensor, torch.Tensor) for tensor in theirs):
        assert ours == theirs, what  # steps that are counted in an int
        return
    largest = max(tensor.abs().max().item() for tensor in theirs if tensor.numel())
    for found, expected in zip(ours, theirs, strict=True):
        bound = TOLERANCE[expected.dtype]
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound * largest, msg=lambda m: f"{what}: {m}")
        assert found.stride() == expected.stride() or not found.numel()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_combination_of_options_trains_as_in_torch(row: Row, dtype: torch.dtype, serve: Callable) -> None:
    combinations = list(row.combinations())
    for start in range(0, len(combinations), GROUPS):
        pair = Pair(row, dtype, combinations[start : start + GROUPS], serve)
        for number in range(STEPS):
            pair.step(number)
            if number in (5, STEPS - 1):
                pair.assert_equal()


def test_every_class_has_a_row() -> None:
    """But for LBFGS, whose steps ask for several gradients: see test_lbfgs."""
    assert {row.name for row in TABLE} == set(optd.torch.algorithms.__all__) - {"LBFGS"}
