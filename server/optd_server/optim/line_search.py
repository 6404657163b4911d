"""How far to go in a direction: to a point that meets the strong Wolfe conditions.

Nocedal and Wright, 2006, "Numerical Optimization", algorithms 3.5 and 3.6, in the form that Schmidt's minFunc gave them
and torch has taken over. Where torch has a tensor of one element there is a numpy scalar of the vectors' dtype, and
where it has a Python number there is one: so they mix with the same rounding.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from optd_server.optim.algorithm import Evaluation, Vector
from optd_server.optim.arithmetic import quotient

DECREASE, CURVATURE = 1e-4, 0.9
"""How much of the decrease that the slope promises is enough, and how much of the slope may be left."""
NARROWEST = 1e-9
"""A search ends where no weight would change by more. In torch, too, it is not `tolerance_change`."""

Scalar: TypeAlias = Any
"""A Python number, or a numpy scalar of the vectors' dtype."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is known at some distance along a direction; the slope is that of the loss by the distance."""

    distance: Scalar
    loss: float
    gradient: Vector
    slope: Scalar


_Asking: TypeAlias = Generator[Vector, Evaluation, Point]
_Searching: TypeAlias = Generator[Vector, Evaluation, tuple[Point, int]]
"""A search along a line: ends with the point to go to, and how many it has asked about."""


def largest(vector: Vector) -> np.floating[Any]:
    """The largest magnitude of its elements."""
    found: np.floating[Any] = np.abs(vector).max()
    return found


class Line:
    """The weights that lie in a direction."""

    def __init__(self, start: Vector, direction: Vector) -> None:
        self._start, self._direction = start, direction
        self.largest = largest(direction)

    def at(self, distance: Scalar) -> Vector:
        """The weights at a distance."""
        way = np.multiply(self._direction, distance)
        return np.add(self._start, way, out=way)

    def ask(self, distance: Scalar) -> _Asking:
        """Ask about the weights at a distance."""
        found = yield self.at(distance)
        # No number is as bad as none is: torch's searches go astray there, and end in weights that are no numbers.
        loss = math.inf if math.isnan(found.loss) else found.loss
        return Point(distance, loss, found.gradient, np.dot(found.gradient, self._direction))


def strong_wolfe(line: Line, start: Point, distance: Scalar, most: int) -> _Searching:
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


def _zoom(line: Line, start: Point, bracket: list[Point], tries: int, most: int) -> _Searching:
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


def _in_order(bracket: list[Point]) -> tuple[int, int]:
    return (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)


def _rises(start: Point, now: Point) -> bool:
    """Whether the loss has not fallen enough (Armijo's condition)."""
    return bool(now.loss > start.loss + DECREASE * now.distance * start.slope)


def _is_level(start: Point, now: Point) -> bool:
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


def _lowest(one: Point, other: Point, least: Scalar, greatest: Scalar) -> Scalar:
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
