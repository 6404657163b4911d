"""A line search: how far to go in a direction, until a point meets the strong Wolfe conditions.

Nocedal and Wright, 2006, "Numerical Optimization", algorithms 3.5 and 3.6, in the form of Schmidt's minFunc, which
torch has taken over. Where torch has a tensor of one element there is a numpy scalar of the vectors' dtype, and where
torch has a Python number there is one: so they mix with the same rounding.

A search has two phases, and each is a plain value that waits for the evaluation at one distance. `Bracketing` looks
further and further out, until it finds such a point, or two points that have one between them. `Zooming` closes in on
it between these two. `begin` makes the first value; `advance` turns one into the next, or into what was `Found`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from optd_server.optim.algorithm import Evaluation, Vector
from optd_server.optim.arithmetic import quotient

DECREASE, CURVATURE = 1e-4, 0.9
"""The share of the decrease promised by the slope that suffices, and the share of the slope that may be left."""
NARROWEST = 1e-9
"""A search ends when no weight would change by more. As in torch, this is not `tolerance_change`."""

Scalar: TypeAlias = Any
"""A Python number, or a numpy scalar of the vectors' dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """What is known at some distance along a direction; the slope is the derivative of the loss by the distance."""

    distance: Scalar
    loss: float
    gradient: Vector
    slope: Scalar


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The weights that lie in a direction from a start, both of shape (N,)."""

    start: Vector
    direction: Vector

    def at(self, distance: Scalar) -> Vector:
        """Return the weights at a distance, a new array."""
        way = np.multiply(self.direction, distance)
        return np.add(self.start, way, out=way)

    def point(self, distance: Scalar, found: Evaluation) -> Point:
        """Return what an evaluation at a distance says about the line."""
        # A loss of NaN counts as infinite: torch's searches go astray there, and end in weights that are NaN.
        loss = math.inf if math.isnan(found.loss) else found.loss
        return Point(distance, loss, found.gradient, np.dot(found.gradient, self.direction))


@dataclass(frozen=True, slots=True, eq=False)
class Bracketing:
    """A search that looks for a point that meets the conditions, or for two that have one between them."""

    start: Point
    before: Point
    """The last point that was evaluated; `start` at first."""
    distance: Scalar
    """The distance whose evaluation it waits for."""
    tries: int
    """How many distances it has asked about after the first one."""
    most: int
    """How many it may ask about after the first one."""


@dataclass(frozen=True, slots=True, eq=False)
class Zooming:
    """A search that closes in on a point that meets the conditions, between two others."""

    start: Point
    bracket: list[Point]
    """The two points."""
    low: int
    """Which of the two has the lower loss, 0 or 1."""
    is_slow: bool
    """Whether the last distance was near an end of the bracket."""
    largest: Scalar
    """The largest magnitude in the direction."""
    distance: Scalar
    """The distance whose evaluation it waits for."""
    tries: int
    """How many distances the search, with its first phase, has asked about after the first one."""
    most: int
    """How many it may ask about after the first one."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The end of a search."""

    point: Point
    """The point to go to."""
    evaluations: int
    """How many distances the search has asked about."""


def largest(vector: Vector) -> np.floating[Any]:
    """Return the largest magnitude of a vector's elements."""
    found: np.floating[Any] = np.abs(vector).max()
    return found


def begin(start: Point, distance: Scalar, most: int) -> Bracketing:
    """Begin a search that first asks about `distance`, and then about at most `most` others."""
    return Bracketing(start, start, distance, 0, most)


def advance(search: Bracketing | Zooming, line: Line, found: Evaluation) -> Bracketing | Zooming | Found:
    """Continue a search along a line with what was found at the distance that it waits for."""
    now = line.point(search.distance, found)
    if isinstance(search, Bracketing):
        return _look_further(search, line, now)
    return _narrow(search, now)


def _look_further(search: Bracketing, line: Line, now: Point) -> Bracketing | Zooming | Found:
    start, before, tries = search.start, search.before, search.tries
    if tries >= search.most:
        return Found(start if start.loss <= now.loss else now, tries + 1)
    if _rises(start, now) or (tries > 1 and now.loss >= before.loss):
        return _zoom(search, line, now)
    if _is_level(start, now):
        return Found(now, tries + 1)
    if now.slope >= 0:
        return _zoom(search, line, now)
    nearest = now.distance + 0.01 * (now.distance - before.distance)
    distance = _lowest(before, now, nearest, now.distance * 10)
    return replace(search, before=now, distance=distance, tries=tries + 1)


def _zoom(search: Bracketing, line: Line, now: Point) -> Zooming | Found:
    bracket = [search.before, now]
    zooming = Zooming(
        start=search.start,
        bracket=bracket,
        low=_lower(bracket),
        is_slow=False,
        largest=largest(line.direction),
        distance=search.distance,
        tries=search.tries,
        most=search.most,
    )
    return _ask_between(zooming)


def _narrow(search: Zooming, now: Point) -> Zooming | Found:
    """Take a point between the two into the bracket."""
    bracket, low, high = list(search.bracket), search.low, 1 - search.low
    if _rises(search.start, now) or now.loss >= bracket[low].loss:
        bracket[high] = now
        return _ask_between(replace(search, bracket=bracket, low=_lower(bracket)))
    if _is_level(search.start, now):
        return Found(now, search.tries + 1)
    if now.slope * (bracket[high].distance - bracket[low].distance) >= 0:
        bracket[high] = bracket[low]
    bracket[low] = now
    return _ask_between(replace(search, bracket=bracket))


def _ask_between(search: Zooming) -> Zooming | Found:
    """Ask about a distance within the bracket, unless it is narrow enough or has been asked about often enough."""
    one, other = search.bracket
    least, greatest = sorted((one.distance, other.distance))
    if search.tries >= search.most or (greatest - least) * search.largest < NARROWEST:
        return Found(search.bracket[search.low], search.tries + 1)
    lowest = _lowest(one, other, least, greatest)
    distance, is_slow = _between(lowest, least, greatest, is_slow=search.is_slow)
    return replace(search, distance=distance, is_slow=is_slow, tries=search.tries + 1)


def _lower(bracket: list[Point]) -> int:
    return 0 if bracket[0].loss <= bracket[1].loss else 1


def _rises(start: Point, now: Point) -> bool:
    """Whether the loss has not fallen enough (Armijo's condition)."""
    return bool(now.loss > start.loss + DECREASE * now.distance * start.slope)


def _is_level(start: Point, now: Point) -> bool:
    """Whether the slope has become small enough."""
    return bool(abs(now.slope) <= -CURVATURE * start.slope)


def _between(distance: Scalar, least: Scalar, greatest: Scalar, *, is_slow: bool) -> tuple[Scalar, bool]:
    """Move a distance away from an end of the bracket if it lies beyond it, or too near for the second time.

    Returns the distance, and whether it is too near for the first time.
    """
    margin = 0.1 * (greatest - least)
    if not min(greatest - distance, distance - least) < margin:
        return distance, False
    if not (is_slow or distance >= greatest or distance <= least):
        return distance, True
    if abs(distance - greatest) < abs(distance - least):
        return greatest - margin, False
    return least + margin, False


def _lowest(one: Point, other: Point, least: Scalar, greatest: Scalar) -> Scalar:
    """Return where, between two bounds, the cubic with the losses and slopes of two points has its minimum.

    Nocedal and Wright, equation 3.59. If there is no minimum, the middle of the bounds, also beside an infinite loss,
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
