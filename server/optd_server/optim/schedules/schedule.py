"""What a schedule declares, and one that has its arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from optd_server.optim.option import Constraint, Option, Options, integer, number


@dataclass(frozen=True)
class Schedule:
    """A family of curves: its name, its arguments, and the factor that these give at a version."""

    name: str
    doc: str
    options: Sequence[Option]
    """Its arguments, which may be given in this order without their names."""
    factor: Callable[[Options, int], float]
    """The factor of the step that follows `count` versions, of resolved arguments."""
    ends: Callable[[Options], Sequence[float]]
    """The lowest and the highest factor, or bounds of them."""
    constraints: Sequence[Constraint] = ()


@dataclass(frozen=True)
class Curve:
    """A schedule with its arguments: a function of the version. Two that are written alike are the same."""

    schedule: Schedule
    arguments: tuple[tuple[str, object], ...]

    def factor(self, version: int) -> float:
        """Return what the option is multiplied by in the step from `version` to the next: within `bounds`."""
        given: Options = dict(self.arguments)  # type: ignore[arg-type]
        warmup = _warmup(given)
        if version < warmup:
            start = number(given, "warmup_start")
            factor = start + (1 - start) * (version / warmup)
        else:
            factor = self.schedule.factor(given, version - warmup)
        lowest, highest = self.bounds
        return min(max(factor, lowest), highest)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest factor that there may be."""
        given: Options = dict(self.arguments)  # type: ignore[arg-type]
        factors = [*self.schedule.ends(given), *([1.0, number(given, "warmup_start")] if _warmup(given) else [])]
        return min(factors), max(factors)


def _warmup(given: Options) -> int:
    return integer(given, "warmup") if "warmup" in given else 0
