"""The curves. If torch has one, the factor equals that of its `lr_scheduler` at the same number of steps.

Sources: the closed forms in ``torch/optim/lr_scheduler.py``; warm-up is a line from `warmup_start` to 1, and what
follows begins after it. Unlike torch's CosineAnnealingLR, which rises again, a curve that has ended stays at its end.
"""

import math
from itertools import pairwise

from optd_server.optim.option import Constraint, Option, Options, Range, flag, floats, integer, number, text
from optd_server.optim.schedules.schedule import Schedule

_COUNT = Range(low=1)
_FACTOR = Range(low=0)
_SHRINKING = Range(low=0, high=1)
_FRACTION = Range(low=0, high=1, low_open=True, high_open=True)

WARMUP = (
    Option("warmup", "int", 0, Range(low=0), doc="versions of a linear warm-up before it"),
    Option("warmup_start", "float", 0.0, _FACTOR, doc="the factor that the warm-up begins with"),
)
STEPS = Option("steps", "int", None, _COUNT, doc="versions until it ends")
END = Option("end", "float", 0.0, _FACTOR, doc="the factor that it ends with")


def _share(options: Options, count: int) -> float:
    """Return how far a curve of `steps` has come, from 0 to 1."""
    steps = integer(options, "steps")
    return min(count, steps) / steps


def _from_one(options: Options) -> tuple[float, float]:
    """Return the bounds of the factors of a curve that goes from 1 to `end`."""
    return 1.0, number(options, "end")


def _linear(options: Options, count: int) -> float:
    start, end = number(options, "start"), number(options, "end")
    return start + (end - start) * _share(options, count)


def _cosine(options: Options, count: int) -> float:
    end = number(options, "end")
    return end + (1 - end) * (1 + math.cos(math.pi * _share(options, count))) / 2


def _step(options: Options, count: int) -> float:
    return math.pow(number(options, "gamma"), count // integer(options, "size"))


def _exponential(options: Options, count: int) -> float:
    return math.pow(number(options, "gamma"), count)


def _polynomial(options: Options, count: int) -> float:
    end = number(options, "end")
    return end + (1 - end) * math.pow(1 - _share(options, count), number(options, "power"))


def _piecewise(options: Options, count: int) -> float:
    passed = sum(count >= each for each in floats(options, "at"))
    return 1.0 if passed == 0 else floats(options, "factors")[passed - 1]


def _phases(options: Options, low: float, high: float, end: float) -> tuple[list[float], list[float]]:
    """Return the ends of the phases of one cycle, and the factors there: see torch's OneCycleLR."""
    steps, rising = integer(options, "steps"), number(options, "pct_start")
    if flag(options, "three_phase"):
        return [0, rising * steps - 1, 2 * rising * steps - 2, steps - 1], [low, high, low, end]
    return [0, rising * steps - 1, steps - 1], [low, high, end]


def _between(options: Options, count: int, places: list[float], factors: list[float]) -> float:
    count = min(count, integer(options, "steps") - 1)
    for phase in range(len(places) - 1):
        if count <= places[phase + 1] or phase == len(places) - 2:
            share = (count - places[phase]) / (places[phase + 1] - places[phase])
            first, second = factors[phase], factors[phase + 1]
            if text(options, "anneal") == "linear":
                return (second - first) * share + first
            return second + (first - second) / 2.0 * (math.cos(math.pi * share) + 1)
    return factors[-1]


def _one_cycle(options: Options, count: int) -> float:
    low = 1 / number(options, "div_factor")
    return _between(options, count, *_phases(options, low, 1.0, _one_cycle_end(options)))


def _one_cycle_end(options: Options) -> float:
    return 1 / number(options, "div_factor") / number(options, "final_div_factor")


def _momentum_cycle(options: Options, count: int) -> float:
    return _between(options, count, *_phases(options, 1.0, number(options, "low"), 1.0))


def _cycle_too_short(options: Options) -> bool:
    places, _ = _phases(options, 1, 1, 1)
    return any(after <= before for before, after in pairwise(places))


_CYCLE = (
    Option("steps", "int", None, Range(low=2), doc="versions of the whole cycle"),
    Option("pct_start", "float", 0.3, _FRACTION, doc="share of the cycle in which it rises"),
    Option("anneal", "text", "cos", choices=("cos", "linear"), doc="the shape between the ends of a phase"),
    Option("three_phase", "bool", False, doc="fall as long as it rose, and then to the end"),
)
_LONG_ENOUGH = Constraint("so large that each phase has a step, with this pct_start", _cycle_too_short, "steps")


def _not_ascending(options: Options) -> bool:
    at = floats(options, "at")
    return not at or any(each != int(each) for each in at) or any(a >= b for a, b in pairwise(at))


CURVES: tuple[Schedule, ...] = (
    Schedule(
        "constant",
        "the value as it is, after a warm-up if there is one",
        WARMUP,
        lambda _options, _count: 1.0,
        lambda _: (1.0,),
    ),
    Schedule(
        "linear",
        "a line from `start` to `end`, and `end` after it (LinearLR)",
        (STEPS, Option("start", "float", 1.0, _FACTOR, doc="the factor that it begins with"), END, *WARMUP),
        _linear,
        lambda o: (number(o, "start"), number(o, "end")),
    ),
    Schedule("cosine", "half a cosine from 1 to `end`, and `end` after it", (STEPS, END, *WARMUP), _cosine, _from_one),
    Schedule(
        "step",
        "times `gamma` after every `size` versions (StepLR)",
        (
            Option("size", "int", None, _COUNT, doc="versions between two changes"),
            Option("gamma", "float", 0.1, _SHRINKING, doc="what each change multiplies by"),
            *WARMUP,
        ),
        _step,
        lambda _: (0.0, 1.0),
    ),
    Schedule(
        "exponential",
        "times `gamma` after every version (ExponentialLR)",
        (Option("gamma", "float", None, _SHRINKING, doc="what each version multiplies by"), *WARMUP),
        _exponential,
        lambda _: (0.0, 1.0),
    ),
    Schedule(
        "polynomial",
        "what is left of `steps`, to a power, from 1 to `end` (PolynomialLR)",
        (STEPS, Option("power", "float", 1.0, Range(low=0), doc="of what is left"), END, *WARMUP),
        _polynomial,
        _from_one,
    ),
    Schedule(
        "one_cycle",
        "up from 1/`div_factor` to 1, and down far below it (OneCycleLR)",
        (
            *_CYCLE,
            Option("div_factor", "float", 25.0, Range(low=1), doc="1 over the factor that it begins with"),
            Option("final_div_factor", "float", 1e4, Range(low=1), doc="how much smaller still is the end"),
        ),
        _one_cycle,
        lambda o: (1.0, _one_cycle_end(o)),
        (_LONG_ENOUGH,),
    ),
    Schedule(
        "momentum_cycle",
        "down from 1 to `low` while one_cycle rises, and up again (OneCycleLR's momentum)",
        (*_CYCLE, Option("low", "float", 0.85 / 0.95, Range(low=0, high=1), doc="the factor at its lowest")),
        _momentum_cycle,
        lambda o: (1.0, number(o, "low")),
        (_LONG_ENOUGH,),
    ),
    Schedule(
        "piecewise",
        "factors[i] from version at[i] on, and 1 before (MultiStepLR)",
        (
            Option("at", "floats", (), Range(low=0), doc="versions from which another factor counts"),
            Option("factors", "floats", (), _FACTOR, doc="the factor from each of them on"),
            *WARMUP,
        ),
        _piecewise,
        lambda o: (1.0, *floats(o, "factors")),
        (
            Constraint("whole numbers, one larger than the other", _not_ascending, "at"),
            Constraint("as many as `at` has", lambda o: len(floats(o, "at")) != len(floats(o, "factors")), "factors"),
        ),
    ),
)
SCHEDULES = {schedule.name: schedule for schedule in CURVES}
