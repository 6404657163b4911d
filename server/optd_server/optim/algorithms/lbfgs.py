"""L-BFGS, as `torch.optim.LBFGS`: a direction from the last changes of weights and gradient, and a step along it.

Nocedal and Wright, 2006, "Numerical Optimization", algorithms 7.4 (the direction) and 3.5 and 3.6 (the search for a
step that meets the strong Wolfe conditions), in the form that Schmidt's minFunc gave them and torch has taken over.

Where torch has a tensor of one element there is a numpy scalar of the vectors' dtype, and where it has a Python number
there is one: so they mix with the same rounding.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from optd_server.optim.algorithm import Evaluation, Iterative, Memory, Search, StateField, Vector, scalar
from optd_server.optim.algorithms.options import learning_rate
from optd_server.optim.arithmetic import quotient
from optd_server.optim.option import Option, Options, Range, Rule, integer, number, text
from optd_server.optim.row_rule import RowRule

STRONG_WOLFE = "strong_wolfe"
DECREASE, CURVATURE = 1e-4, 0.9
"""How much of the decrease that the slope promises is enough, and how much of the slope may be left."""
NARROWEST = 1e-9
"""A search ends where no weight would change by more. In torch, too, it is not `tolerance_change`."""
LEAST_CURVATURE = 1e-10
"""A pair of changes whose product is not above it is not remembered."""

Scalar: TypeAlias = Any
"""A Python number, or a numpy scalar of the vectors' dtype."""


@dataclass(frozen=True, slots=True)
class _Point:
    """What is known at some distance along a direction; the slope is that of the loss by the distance."""

    distance: Scalar
    loss: float
    gradient: Vector
    slope: Scalar


_Asking: TypeAlias = Generator[Vector, Evaluation, _Point]
_Searching: TypeAlias = Generator[Vector, Evaluation, tuple[_Point, int]]
"""A search along a line: ends with the point to go to, and how many it has asked about."""


def search(options: Options, memory: Memory, weights: Vector, first: Evaluation) -> Search:
    """Take one step, which is of up to `max_iter` iterations: of a direction each, and a way along it."""
    here, evaluations, iterations = first, 1, 0
    tolerance, most = number(options, "tolerance_change"), _most_evaluations(options)
    history = _History(memory, integer(options, "history_size"))
    going = not _is_flat(first.gradient, options)
    while going and iterations < integer(options, "max_iter"):
        iterations += 1
        before = here
        history.turn(before, number(options, "lr"))
        direction, slope = history.direction, np.dot(before.gradient, history.direction)
        if slope > -tolerance:
            break
        line = _Line(weights, direction)
        is_last, asked = iterations == integer(options, "max_iter"), 0
        if text(options, "line_search_fn") == STRONG_WOLFE:
            start = _Point(0, before.loss, before.gradient, slope)
            found, asked = yield from _strong_wolfe(line, start, history.distance, most - evaluations)
            here, history.distance = Evaluation(found.loss, found.gradient), found.distance
        before_it, weights = weights, line.at(history.distance)
        if text(options, "line_search_fn") is None and not is_last:
            here, asked = (yield weights), 1
        evaluations += asked
        if not here.is_finite:
            weights = before_it  # where torch would go on with NaN
            break
        going = not (
            is_last
            or evaluations >= most
            or _is_flat(here.gradient, options)
            or _largest(np.multiply(direction, history.distance)) <= tolerance
            or abs(here.loss - before.loss) < tolerance
        )
    history.keep(memory, evaluations, iterations)
    return weights


def _most_evaluations(options: Options) -> int:
    return integer(options, "max_iter") * 5 // 4 if options["max_eval"] is None else integer(options, "max_eval")


def _is_flat(gradient: Vector, options: Options) -> bool:
    return bool(_largest(gradient) <= number(options, "tolerance_grad"))


def _largest(vector: Vector) -> np.floating[Any]:
    largest: np.floating[Any] = np.abs(vector).max()
    return largest


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


class _Line:
    """The weights that lie in a direction."""

    def __init__(self, start: Vector, direction: Vector) -> None:
        self._start, self._direction = start, direction
        self.largest = _largest(direction)

    def at(self, distance: Scalar) -> Vector:
        """The weights at a distance."""
        way = np.multiply(self._direction, distance)
        return np.add(self._start, way, out=way)

    def ask(self, distance: Scalar) -> _Asking:
        """Ask about the weights at a distance."""
        found = yield self.at(distance)
        # No number is as bad as none is: torch's searches go astray there, and end in weights that are no numbers.
        loss = math.inf if math.isnan(found.loss) else found.loss
        return _Point(distance, loss, found.gradient, np.dot(found.gradient, self._direction))


def _strong_wolfe(line: _Line, start: _Point, distance: Scalar, most: int) -> _Searching:
    """Find a point that meets the strong Wolfe conditions, with `most` questions after the first one.

    Goes on until such a point is found, or two that have one between them, which `_zoom` closes in on.
    """
    before, now, tries = start, (yield from line.ask(distance)), 0
    while tries < most:
        if _rises(start, now) or (tries > 1 and now.loss >= before.loss):
            return (yield from _zoom(line, start, [before, now], tries, most))
        if _is_level(start, now):
            return now, tries + 1
        if now.slope >= 0:
            return (yield from _zoom(line, start, [before, now], tries, most))
        nearest = now.distance + 0.01 * (now.distance - before.distance)
        distance = _lowest(before, now, nearest, now.distance * 10)
        before, now, tries = now, (yield from line.ask(distance)), tries + 1
    return (start if start.loss <= now.loss else now), tries + 1


def _zoom(line: _Line, start: _Point, bracket: list[_Point], tries: int, most: int) -> _Searching:
    """Close in on a point that meets the strong Wolfe conditions, between the two of `bracket`."""
    is_slow = False
    low, high = _in_order(bracket)
    while tries < most:
        least, greatest = sorted(point.distance for point in bracket)
        if (greatest - least) * line.largest < NARROWEST:
            break
        distance, is_slow = _between(_lowest(bracket[0], bracket[1], least, greatest), least, greatest, is_slow=is_slow)
        now, tries = (yield from line.ask(distance)), tries + 1
        if _rises(start, now) or now.loss >= bracket[low].loss:
            bracket[high] = now
            low, high = _in_order(bracket)
            continue
        if not _is_level(start, now) and now.slope * (bracket[high].distance - bracket[low].distance) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = now
        if _is_level(start, now):
            break
    return bracket[low], tries + 1


def _in_order(bracket: list[_Point]) -> tuple[int, int]:
    return (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)


def _rises(start: _Point, now: _Point) -> bool:
    """Whether the loss has not fallen enough (Armijo's condition)."""
    return bool(now.loss > start.loss + DECREASE * now.distance * start.slope)


def _is_level(start: _Point, now: _Point) -> bool:
    """Whether the slope has become small enough."""
    return bool(abs(now.slope) <= -CURVATURE * start.slope)


def _between(distance: Scalar, least: Scalar, greatest: Scalar, *, is_slow: bool) -> tuple[Scalar, bool]:
    """Where to ask instead, if a distance is too near to an end of the bracket, for the second time or beyond it.

    Returns whether it is too near for the first time, too.
    """
    margin = 0.1 * (greatest - least)
    if not min(greatest - distance, distance - least) < margin:
        return distance, False
    if not (is_slow or distance >= greatest or distance <= least):
        return distance, True
    if abs(distance - greatest) < abs(distance - least):
        return greatest - margin, False
    return least + margin, False


def _lowest(one: _Point, other: _Point, least: Scalar, greatest: Scalar) -> Scalar:
    """Where between two bounds the cubic has its minimum that has the losses and slopes of two points.

    Nocedal and Wright, equation 3.59; the middle of the bounds where it has none. So it is beside an infinite loss,
    where torch goes on with NaN.
    """
    width = one.distance - other.distance
    drop = 3 * (one.loss - other.loss)
    d1 = one.slope + other.slope - (drop / width if isinstance(width, np.floating) else quotient(drop, width))
    square = d1**2 - one.slope * other.slope
    if not square >= 0:
        return (least + greatest) / 2.0
    d2 = np.sqrt(square)
    near, far = (one, other) if one.distance <= other.distance else (other, one)
    share = (far.slope + d2 - d1) / (far.slope - near.slope + 2 * d2)
    lowest = far.distance - (far.distance - near.distance) * share
    return (least + greatest) / 2.0 if np.isnan(lowest) else min(max(lowest, least), greatest)


LBFGS = Iterative(
    name="lbfgs",
    title="LBFGS",
    doc="L-BFGS: steps that the curvature of the loss directs, each of several evaluations; for one group.",
    options=(
        learning_rate(1.0),
        Option("max_iter", "int", 20, doc="iterations of one step, at most"),
        Option("max_eval", "int", None, nullable=True, doc="evaluations of one step, at most; None: max_iter * 5 // 4"),
        Option("tolerance_grad", "float", 1e-7, doc="a step ends where no element of the gradient is larger"),
        Option("tolerance_change", "float", 1e-9, doc="a step ends where loss or weights change by no more"),
        Option("history_size", "int", 100, Range(1, None), fixed=True, doc="pairs of changes that are remembered"),
        Option(
            "line_search_fn",
            "text",
            None,
            nullable=True,
            choices=(STRONG_WOLFE,),
            doc="how far to go in a direction: as far as meets the strong Wolfe conditions; None: lr times its length",
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
    search=search,
    rows=RowRule(whole=lambda _: True),
)
