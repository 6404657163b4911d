"""L-BFGS, as `torch.optim.LBFGS`: a direction from the last changes of weights and gradient, and a step along it.

Nocedal and Wright, 2006, "Numerical Optimization", algorithm 7.4, in the form that Schmidt's minFunc gave it and torch
has taken over. Numbers mix as they do there: see `line_search`, which finds how far to go.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from optd_server.optim.algorithm import Evaluation, Iterative, Memory, Search, StateField, Vector, scalar
from optd_server.optim.algorithms.options import learning_rate
from optd_server.optim.line_search import Line, Point, Scalar, largest, strong_wolfe
from optd_server.optim.option import Option, Options, Range, Rule, integer, number, text
from optd_server.optim.row_rule import RowRule

STRONG_WOLFE = "strong_wolfe"
MOST_PAIRS = 10_000
"""Each is two states, which are named and planned for one by one."""
_TOGETHER = ("d", "t", "prev_flat_grad", "prev_loss")
LEAST_CURVATURE = 1e-10
"""A pair of changes whose product is not above it is not remembered."""


def search(options: Options, memory: Memory, weights: Vector, first: Evaluation) -> Search:
    """Take one step, which is of up to `max_iter` iterations: of a direction each, and a way along it."""
    here, evaluations, iterations = first, 1, 0
    tolerance, most = number(options, "tolerance_change"), _most_evaluations(options)
    history = _History(memory, integer(options, "history_size"))
    going = not _is_flat(first.gradient, options)
    while going and iterations < integer(options, "max_iter"):
        iterations += 1
        before = here
        history.turn(before, float(number(options, "lr")))
        direction, slope = history.direction, np.dot(before.gradient, history.direction)
        if slope > -tolerance:
            break
        line = Line(weights, direction)
        is_last, asked = iterations == integer(options, "max_iter"), 0
        if text(options, "line_search_fn") == STRONG_WOLFE:
            start = Point(0, before.loss, before.gradient, slope)
            found, asked = yield from strong_wolfe(line, start, history.distance, most - evaluations)
            here, history.distance = Evaluation(found.loss, found.gradient), found.distance
        before_it, weights = weights, line.at(history.distance)
        if text(options, "line_search_fn") is None and not is_last:
            here, asked = (yield weights), 1
            # As in torch: what a closure writes stays, but for what it writes at the points that a line search tries.
            weights = weights if here.weights is None else here.weights
        evaluations += asked
        if not here.is_finite:
            weights = before_it  # where torch would go on with NaN
            break
        going = not (
            is_last
            or evaluations >= most
            or _is_flat(here.gradient, options)
            or largest(np.multiply(direction, history.distance)) <= tolerance
            or abs(here.loss - before.loss) < tolerance
        )
    history.keep(memory, evaluations, iterations)
    return weights


def incomplete(names: Collection[str]) -> str | None:
    """What of a memory is missing, where some of it is there."""
    counts = [sum(name.startswith(f"{series}.") for name in names) for series in ("old_dirs", "old_stps")]
    if counts[0] != counts[1]:
        return f"have as many old_dirs as old_stps, got {counts[0]} and {counts[1]}"
    gaps = [f"{series}.{i}" for series in ("old_dirs", "old_stps") for i in range(counts[0])]
    begun = any(name in names for name in _TOGETHER) or counts[0] > 0
    missing = [name for name in (*(_TOGETHER if begun else ()), *gaps) if name not in names]
    return f"have {missing[0]} with the rest" if missing else None


def working_vectors(options: Options) -> int:
    """Pairs that come in one step while those before are kept; points, directions, gradients and copies of them."""
    return 2 * max(0, min(integer(options, "max_iter"), integer(options, "history_size"))) + 13


def _most_evaluations(options: Options) -> int:
    return integer(options, "max_iter") * 5 // 4 if options["max_eval"] is None else integer(options, "max_eval")


def _is_flat(gradient: Vector, options: Options) -> bool:
    return bool(largest(gradient) <= number(options, "tolerance_grad"))


class _History:
    """What is remembered: the last direction and how far it was followed, and pairs of changes before it."""

    def __init__(self, memory: Memory, most: int) -> None:
        self.direction: Any = memory.get("d")
        """A vector, once `turn` has found one."""
        self.distance: Scalar = memory.get("t", 0.0)
        self._gradient: Vector | None = memory.get("prev_flat_grad")
        self._loss = memory.get("prev_loss")
        self._most = most
        self._of_gradient: list[Vector] = []
        self._of_weights: list[Vector] = []
        self._inverses: list[Scalar] = []
        self._scale: Scalar = 1
        for pair in zip(memory.get("old_dirs", ()), memory.get("old_stps", ()), strict=True):
            self._append(*pair, np.dot(*pair))

    def turn(self, here: Evaluation, lr: float) -> None:
        """Find the direction to follow from a place, and how far to go at first."""
        if self._gradient is None:
            self.direction = np.negative(here.gradient)
            self.distance = min(1.0, 1.0 / np.abs(here.gradient).sum()) * lr
        else:
            self._add(np.subtract(here.gradient, self._gradient), np.multiply(self.direction, self.distance))
            self.direction = self._descent(here.gradient)
            self.distance = lr
        self._gradient, self._loss = here.gradient, here.loss

    def _add(self, of_gradient: Vector, of_weights: Vector) -> None:
        product = np.dot(of_gradient, of_weights)
        if product > LEAST_CURVATURE:
            if len(self._inverses) == self._most:
                for kept in (self._of_gradient, self._of_weights, self._inverses):
                    kept.pop(0)
            self._append(of_gradient, of_weights, product)

    def _append(self, of_gradient: Vector, of_weights: Vector, product: Scalar) -> None:
        self._of_gradient.append(of_gradient)
        self._of_weights.append(of_weights)
        self._inverses.append(1.0 / product)
        self._scale = product / np.dot(of_gradient, of_gradient)

    def _descent(self, gradient: Vector) -> Vector:
        """Minus the gradient, times an inverse Hessian that maps each change of the gradient to that of the weights."""
        direction, scratch = np.negative(gradient), np.empty_like(gradient)
        pairs = list(zip(self._of_gradient, self._of_weights, self._inverses, strict=True))
        shares = []
        for of_gradient, of_weights, inverse in reversed(pairs):
            shares.append(np.dot(of_weights, direction) * inverse)
            direction += np.multiply(of_gradient, -shares[-1], out=scratch)
        direction *= self._scale
        for (of_gradient, of_weights, inverse), share in zip(pairs, reversed(shares), strict=True):
            other = np.dot(of_gradient, direction) * inverse
            direction += np.multiply(of_weights, share - other, out=scratch)
        return direction

    def keep(self, memory: Memory, evaluations: int, iterations: int) -> None:
        """Remember it, under torch's names, after so many evaluations and iterations more."""
        memory["func_evals"] = memory.get("func_evals", 0.0) + evaluations
        memory["n_iter"] = memory.get("n_iter", 0.0) + iterations
        if not iterations:
            return
        memory["d"], memory["prev_flat_grad"], memory["prev_loss"] = self.direction, self._gradient, self._loss
        memory["t"], memory["t_is_tensor"] = float(self.distance), float(isinstance(self.distance, np.floating))
        memory["old_dirs"], memory["old_stps"] = self._of_gradient, self._of_weights


LBFGS = Iterative(
    name="lbfgs",
    title="LBFGS",
    doc="L-BFGS: steps along directions that follow the curvature of the loss; each evaluates the loss several times.",
    options=(
        learning_rate(1.0),
        Option("max_iter", "int", 20, doc="Largest number of iterations in one step."),
        Option(
            "max_eval",
            "int",
            None,
            nullable=True,
            doc="Largest number of evaluations of the loss in one step. None: `max_iter * 5 // 4`.",
        ),
        Option("tolerance_grad", "float", 1e-7, doc="A step ends when no element of the gradient is larger."),
        Option("tolerance_change", "float", 1e-9, doc="A step ends when the loss or the weights change by less."),
        Option(
            "history_size",
            "int",
            100,
            Range(1, MOST_PAIRS),
            fixed=True,
            doc="How many past changes of weights and gradient are kept, to estimate the curvature.",
        ),
        Option(
            "line_search_fn",
            "text",
            None,
            nullable=True,
            choices=(STRONG_WOLFE,),
            doc="How the length of each iteration is chosen: by a line search for the strong Wolfe conditions. None: "
            "it is `lr` times the direction.",
        ),
    ),
    rules=(
        Rule(
            "at least 1 for line_search_fn='strong_wolfe'",
            lambda options: text(options, "line_search_fn") is not None and _most_evaluations(options) < 1,
            "max_eval",
        ),
    ),
    state=(
        StateField("func_evals", shape=scalar, dtype="float64"),
        StateField("n_iter", shape=scalar, dtype="float64"),
        StateField("d"),
        StateField("t", shape=scalar, dtype="float64"),
        StateField("t_is_tensor", shape=scalar, dtype="float64"),
        StateField("old_dirs", series=lambda options: integer(options, "history_size")),
        StateField("old_stps", series=lambda options: integer(options, "history_size")),
        StateField("prev_flat_grad"),
        StateField("prev_loss", shape=scalar, dtype="float64"),
    ),
    incomplete=incomplete,
    working_vectors=working_vectors,
    search=search,
    rows=RowRule(whole=lambda _: True),
)
