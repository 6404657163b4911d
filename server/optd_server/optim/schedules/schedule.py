"""What a schedule declares, and one that has its arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optd_server.optim.option import Option, Options, Rule, integer, number


@dataclass(frozen=True)
class Schedule:
    """A family of curves: its name, its arguments, and the factor that these give at a version."""

    name: str
    doc: str
    options: Sequence[Option]
    """Its arguments, which may be given in this order without their names."""
    factor: Callable[[Options, int], float]
    """The factor of the step that follows `count` versions, of resolved arguments."""
    rules: Sequence[Rule] = ()


@dataclass(frozen=True)
class Curve:
    """A schedule with its arguments: a function of the version. Two that are written alike are the same."""

    schedule: Schedule
    arguments: tuple[tuple[str, object], ...]

    def factor(self, version: int) -> float:
        """Return what the option is multiplied by in the step from `version` to the next."""
        given: Options = dict(self.arguments)  # type: ignore[arg-type]
        warmup = integer(given, "warmup") if "warmup" in given else 0
        if version < warmup:
            start = number(given, "warmup_start")
            return start + (1 - start) * (version / warmup)
        return self.schedule.factor(given, version - warmup)
