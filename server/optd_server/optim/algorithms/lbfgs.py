"""L-BFGS, as `torch.optim.LBFGS`: a direction from the last changes of weights and gradient, and a step along it.

Nocedal and Wright, 2006, "Numerical Optimization", algorithm 7.4, in the form of Schmidt's minFunc, which torch has
taken over. Numbers mix as they do there: see `line_search`, which finds how far to go.

A step has up to `max_iter` iterations. Each turns (`History.turned` finds a direction) and then goes along it, which
takes evaluations: one for a fixed distance, several for a line search. `Search` is the step between two of them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from optd_server.optim import line_search
from optd_server.optim.algorithm import Evaluation, Iterative, Progress, Remembered, StateField, Vector, scalar
from optd_server.optim.algorithms.options import learning_rate
from optd_server.optim.line_search import Bracketing, Found, Line, Point, Scalar, Zooming, largest
from optd_server.optim.option import Constraint, Option, Options, Range, integer, number, text
from optd_server.optim.row_support import RowSupport

STRONG_WOLFE = "strong_wolfe"
MOST_PAIRS = 10_000
"""Each pair is two states, which are named and planned for one by one."""
_TOGETHER = ("d", "t", "prev_flat_grad", "prev_loss")
LEAST_CURVATURE = 1e-10
"""A pair of changes is remembered only if its product is above this."""


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """The options that a step has begun with."""

    lr: float
    max_iter: int
    max_eval: int
    tolerance_grad: Scalar
    tolerance_change: Scalar
    history_size: int
    line_search_fn: str | None

    @classmethod
    def of(cls, options: Options) -> "Settings":
        """Take them from resolved options."""
        return cls(
            float(number(options, "lr")),
            integer(options, "max_iter"),
            _most_evaluations(options),
            number(options, "tolerance_grad"),
            number(options, "tolerance_change"),
            integer(options, "history_size"),
            text(options, "line_search_fn"),
        )

    def is_flat(self, gradient: Vector) -> bool:
        """Whether no element of a gradient is larger than the tolerance."""
        return bool(largest(gradient) <= self.tolerance_grad)


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What a direction is made of: the one before it, how far that was followed, and earlier pairs of changes."""

    direction: Vector | None
    """None before the very first direction; so are gradient and loss."""
    distance: Scalar
    gradient: Vector | None
    """The gradient at the weights from which the direction leads."""
    loss: float | None
    """The loss there."""
    of_gradient: list[Vector]
    """The changes of the gradient that are remembered, the oldest first."""
    of_weights: list[Vector]
    """The changes of the weights that belong to them."""
    inverses: list[Scalar]
    """For each pair, 1 over its product."""
    scale: Scalar
    """The factor of the first estimate of the inverse Hessian, from the last pair."""

    @classmethod
    def of(cls, remembered: Remembered) -> "History":
        """Take it from what earlier steps have remembered."""
        of_gradient, of_weights = list(remembered.get("old_dirs", ())), list(remembered.get("old_stps", ()))
        products = [np.dot(*pair) for pair in zip(of_gradient, of_weights, strict=True)]
        return cls(
            direction=remembered.get("d"),
            distance=remembered.get("t", 0.0),
            gradient=remembered.get("prev_flat_grad"),
            loss=remembered.get("prev_loss"),
            of_gradient=of_gradient,
            of_weights=of_weights,
            inverses=[1.0 / product for product in products],
            scale=products[-1] / np.dot(of_gradient[-1], of_gradient[-1]) if products else 1,
        )

    def turned(self, here: Evaluation, lr: float, most: int) -> "History":
        """Find the direction to follow from a place and how far to go at first; `most` pairs are remembered."""
        if self.direction is None or self.gradient is None:
            history, direction = self, np.negative(here.gradient)
            distance = min(1.0, 1.0 / np.abs(here.gradient).sum()) * lr
        else:
            of_gradient = np.subtract(here.gradient, self.gradient)
            of_weights = np.multiply(self.direction, self.distance)
            product = np.dot(of_gradient, of_weights)
            history = self._with(of_gradient, of_weights, product, most) if product > LEAST_CURVATURE else self
            direction, distance = history._descent(here.gradient), lr
        return replace(history, direction=direction, distance=distance, gradient=here.gradient, loss=here.loss)

    def _with(self, of_gradient: Vector, of_weights: Vector, product: Scalar, most: int) -> "History":
        """Remember one more pair, and forget the oldest one if there are `most` already."""
        first = 1 if len(self.inverses) == most else 0
        return replace(
            self,
            of_gradient=[*self.of_gradient[first:], of_gradient],
            of_weights=[*self.of_weights[first:], of_weights],
            inverses=[*self.inverses[first:], 1.0 / product],
            scale=product / np.dot(of_gradient, of_gradient),
        )

    def _descent(self, gradient: Vector) -> Vector:
        """Minus the gradient, times an inverse Hessian that maps each change of the gradient to that of the weights."""
        direction, scratch = np.negative(gradient), np.empty_like(gradient)
        pairs = list(zip(self.of_gradient, self.of_weights, self.inverses, strict=True))
        shares = []
        for of_gradient, of_weights, inverse in reversed(pairs):
            shares.append(np.dot(of_weights, direction) * inverse)
            direction += np.multiply(of_gradient, -shares[-1], out=scratch)
        direction *= self.scale
        for (of_gradient, of_weights, inverse), share in zip(pairs, reversed(shares), strict=True):
            other = np.dot(of_gradient, direction) * inverse
            direction += np.multiply(of_weights, share - other, out=scratch)
        return direction


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A step that waits for an evaluation, somewhere in the direction of its history from `weights`."""

    settings: Settings
    history: History
    weights: Vector
    """Where the direction begins, shape (N,)."""
    evaluations: int
    """How many evaluations the step has had, without those of the line search that is under way."""
    iterations: int
    """How many directions the step has followed, with this one."""
    evaluations_before: float
    """How many evaluations all earlier steps have had."""
    iterations_before: float
    line_search: Bracketing | Zooming | None
    """None: the step waits for the evaluation at the distance of its history."""

    @property
    def line(self) -> Line:
        """The weights in the direction."""
        assert self.history.direction is not None
        return Line(self.weights, self.history.direction)

    @property
    def is_last(self) -> bool:
        """Whether it is in the last of its iterations."""
        return self.iterations == self.settings.max_iter


def begin(options: Options, remembered: Remembered, weights: Vector, first: Evaluation) -> Progress:
    """Begin a step."""
    settings, history = Settings.of(options), History.of(remembered)
    before = remembered.get("func_evals", 0.0), remembered.get("n_iter", 0.0)
    search = Search(settings, history, weights, 1, 0, *before, line_search=None)
    return _end(search) if settings.is_flat(first.gradient) or settings.max_iter < 1 else _turn(search, first)


def advance(search: Search, found: Evaluation) -> Progress:
    """Continue a step."""
    if search.line_search is not None:
        return _search_line(search, search.line_search, found)
    if not found.is_finite:
        return _end(replace(search, evaluations=search.evaluations + 1))  # torch would go on with NaN
    # As in torch: what a closure writes stays, unless it writes it at the points that a line search tries.
    weights = search.line.at(search.history.distance) if found.weights is None else found.weights
    return _arrive(search, weights, found, 1)


def _turn(search: Search, here: Evaluation) -> Progress:
    """Begin an iteration: find a direction, and ask about the first weights in it."""
    settings = search.settings
    history = search.history.turned(here, settings.lr, settings.history_size)
    assert history.direction is not None
    search = replace(search, history=history, iterations=search.iterations + 1)
    slope = np.dot(here.gradient, history.direction)
    if slope > -settings.tolerance_change:
        return _end(search)
    if settings.line_search_fn == STRONG_WOLFE:
        start = Point(0, here.loss, here.gradient, slope)
        begun = line_search.begin(start, history.distance, settings.max_eval - search.evaluations)
        search = replace(search, line_search=begun)
    elif search.is_last:
        # As in torch, the weights after the last iteration are not evaluated.
        return _end(search, search.line.at(history.distance) if here.is_finite else search.weights)
    return Progress(search.line.at(history.distance), search)


def _search_line(search: Search, searching: Bracketing | Zooming, found: Evaluation) -> Progress:
    moved = line_search.advance(searching, search.line, found)
    if not isinstance(moved, Found):
        return Progress(search.line.at(moved.distance), replace(search, line_search=moved))
    point = moved.point
    search = replace(search, history=replace(search.history, distance=point.distance), line_search=None)
    return _arrive(search, search.line.at(point.distance), Evaluation(point.loss, point.gradient), moved.evaluations)


def _arrive(search: Search, weights: Vector, here: Evaluation, evaluations: int) -> Progress:
    """End an iteration at weights that have been evaluated: begin another one there, or end the step."""
    settings, history = search.settings, search.history
    assert history.direction is not None and history.loss is not None
    search = replace(search, evaluations=search.evaluations + evaluations)
    is_over = (
        search.is_last
        or search.evaluations >= settings.max_eval
        or settings.is_flat(here.gradient)
        or largest(np.multiply(history.direction, history.distance)) <= settings.tolerance_change
        or abs(here.loss - history.loss) < settings.tolerance_change
    )
    return _end(search, weights) if is_over else _turn(replace(search, weights=weights), here)


def _end(search: Search, weights: Vector | None = None) -> Progress:
    """End a step at `weights`, or where its last direction begins; torch's names say what it remembers."""
    history = search.history
    remembered: dict[str, object] = {
        "func_evals": search.evaluations_before + search.evaluations,
        "n_iter": search.iterations_before + search.iterations,
    }
    if search.iterations:
        remembered |= {
            "d": history.direction,
            "t": float(history.distance),
            "t_is_tensor": float(isinstance(history.distance, np.floating)),
            "old_dirs": history.of_gradient,
            "old_stps": history.of_weights,
            "prev_flat_grad": history.gradient,
            "prev_loss": history.loss,
        }
    return Progress(search.weights if weights is None else weights, None, remembered)


def incomplete(names: Collection[str]) -> str | None:
    """Return what is missing from what is remembered if it is there in part, as the end of "state must …"."""
    counts = [sum(name.startswith(f"{series}.") for name in names) for series in ("old_dirs", "old_stps")]
    if counts[0] != counts[1]:
        return f"have as many old_dirs as old_stps, got {counts[0]} and {counts[1]}"
    gaps = [f"{series}.{i}" for series in ("old_dirs", "old_stps") for i in range(counts[0])]
    begun = any(name in names for name in _TOGETHER) or counts[0] > 0
    missing = [name for name in (*(_TOGETHER if begun else ()), *gaps) if name not in names]
    return f"have {missing[0]} with the rest" if missing else None


def working_vectors(options: Options) -> int:
    """Count the pairs that a step adds while the segment keeps those before it, and its points and gradients."""
    return 2 * max(0, min(integer(options, "max_iter"), integer(options, "history_size"))) + 13


def _most_evaluations(options: Options) -> int:
    return integer(options, "max_iter") * 5 // 4 if options["max_eval"] is None else integer(options, "max_eval")


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
    constraints=(
        Constraint(
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
    search=Search,
    begin=begin,
    advance=advance,
    rows=RowSupport(whole=lambda _: True),
)
