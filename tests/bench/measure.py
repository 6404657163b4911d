"""Runs a row: both sides in turn, again and again, after a warm-up that is also held to be right."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bench.row import NotAvailable, Row, Side, Sides, Wrong
from bench.sizes import Size

WARM_UPS = {"full": 5, "tiny": 2}
"""Turns by size's name. torch.distributed.rpc takes ten steps until its allocator finds all it needs."""
SETTLE_SECONDS = 0.02
"""Between turns: threads of torch's pool spin a little while after their last work, in the way of the other side."""


@dataclass(frozen=True)
class Samples:
    """What one side measured."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half."""
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)


@dataclass(frozen=True)
class Result:
    """What came of a row."""

    row: Row
    ours: Samples | None = None
    reference: Samples | None = None
    problem: str = ""
    """Why there are no samples, or why they do not count."""
    failed: bool = field(default=False)
    """Whether that is a mistake, in optd or in the row; what this optd does not have yet is none."""

    @property
    def ratio(self) -> float | None:
        """Ours / reference, of the medians."""
        if self.problem or self.ours is None or self.reference is None:
            return None
        return self.ours.median / self.reference.median

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is no aim or no ratio."""
        return None if self.ratio is None else self.row.meets(self.ratio)


def run(row: Row, size: Size, repeat: int, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Sets a row up, measures it, and takes it down. Whatever goes wrong becomes its result."""
    try:
        tell("setting up")
        with row.build(size) as sides:
            if not row.once:
                tell("warming up")
                _warm_up(sides, WARM_UPS[size.name])
            ours, reference = _alternate(sides, 1 if row.once else repeat, row.once, tell)
    except NotAvailable as error:
        return Result(row, problem=f"not available: {error}")
    except Wrong as error:
        return Result(row, problem=f"wrong: {error}", failed=True)
    except Exception as error:  # noqa: BLE001 - the other rows go on
        return Result(row, problem=f"failed: {type(error).__name__}: {error}", failed=True)
    return Result(row, Samples(tuple(ours)), Samples(tuple(reference)) if reference else None)


def _alternate(sides: Sides, repeat: int, once: bool, tell: Callable[[str], None]) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    reference: list[float] = []
    for number in range(repeat):
        tell(f"{number + 1} of {repeat}")
        ours.append(_turn(sides.ours, once))
        if sides.reference is not None:
            reference.append(_turn(sides.reference, once))
    return ours, reference


def _turn(side: Side, once: bool) -> float:
    """One sample, of work that is under way: the first call after a rest finds caches and threads elsewhere."""
    side.resume()
    time.sleep(SETTLE_SECONDS)
    if not once:
        side.measure()
    value = side.measure()
    side.pause()
    return value


def _warm_up(sides: Sides, turns: int) -> None:
    """Runs both sides as often; then their weights have changed, and are those of the other side."""
    after = []
    for side, name in ((sides.ours, "ours"), (sides.reference, "the reference")):
        if side is None:
            continue
        before = None
        for _ in range(turns):
            _turn(side, once=False)
            if side.weights is None:
                continue
            side.resume()
            weights = side.weights()
            side.pause()
            if before is not None and np.array_equal(before, weights):
                raise Wrong(f"{name}: a step has not changed the weights")
            before = weights
        after.append(before)
    if len(after) == 2 and sides.tolerance is not None and after[0] is not None and after[1] is not None:
        _agree(after[0], after[1], sides.tolerance, sides.floor)


def _agree(ours: np.ndarray, theirs: np.ndarray, tolerance: float, floor: float) -> None:
    if ours.shape != theirs.shape:
        raise Wrong(f"{ours.size} weights, the reference has {theirs.size}")
    apart = np.abs(ours - theirs)
    allowed = tolerance * np.abs(theirs) + floor * np.abs(theirs).max()
    if not (apart <= allowed).all():
        raise Wrong(f"weights differ from the reference's by up to {apart.max():.3g}")
