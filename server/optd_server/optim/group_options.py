"""Options that every group has, whatever its algorithm; they join the options that the algorithm declares."""

from collections.abc import Callable

from optd_server.optim.algorithm import MASTER_WEIGHTS, Algorithm, Iterative
from optd_server.optim.lookahead import LOOKAHEAD_ALPHA, LOOKAHEAD_OPTIONS, LOOKAHEAD_STEPS
from optd_server.optim.option import Constraint, Option, Options, Range, floats, integer, number, text
from optd_server.optim.rules import RULES, RULES_OPTION
from optd_server.optim.scheduled import LR_SCHEDULE, MOMENTUM_SCHEDULE, SCHEDULE_OPTIONS, SCHEDULES, Target, at, targets
from optd_server.optim.schedules.text import parse

SCHEDULE_START = "schedule_start"
CLIP_NORM = "clip_norm"
CLIP_VALUE = "clip_value"

_POSITIVE = Range(0, None, low_open=True)

GROUP_OPTIONS: tuple[Option, ...] = (
    *SCHEDULE_OPTIONS,
    Option(
        SCHEDULE_START,
        "int",
        0,
        doc="The version of the job that schedules count from; negative if they began in an earlier job.",
    ),
    Option(
        CLIP_NORM,
        "float",
        None,
        _POSITIVE,
        nullable=True,
        doc="Upper bound of the norm of the group's gradient; a larger gradient is scaled down to it. The job's "
        "`clip_norm_type` says which norm. None: no bound.",
    ),
    Option(
        CLIP_VALUE,
        "float",
        None,
        _POSITIVE,
        nullable=True,
        doc="Upper bound of the magnitude of each element of the group's gradient; larger elements are set to it. "
        "None: no bound.",
    ),
    Option(
        MASTER_WEIGHTS.name,
        "bool",
        False,
        doc="Keep float32 weights of float16 and bfloat16 parameters as state, so that small steps are not lost to "
        "rounding. Has no effect on parameters of other dtypes.",
    ),
    *LOOKAHEAD_OPTIONS,
    RULES_OPTION,
)
OF_PARAMETERS = frozenset(
    {
        LR_SCHEDULE,
        MOMENTUM_SCHEDULE,
        SCHEDULES,
        MASTER_WEIGHTS.name,
        *(option.name for option in LOOKAHEAD_OPTIONS),
    }
)
"""The group options that a rule may set for some parameters of a group."""
_SCHEDULED = tuple(option for option in GROUP_OPTIONS if option.name in (CLIP_NORM, CLIP_VALUE, LOOKAHEAD_ALPHA))
"""The group options that may have a schedule."""


def group_constraints(algorithm: Algorithm) -> tuple[Constraint, ...]:
    """Return the conditions that group options must meet with an algorithm."""
    scheduled = scheduled_options(algorithm)
    return (*unusable(algorithm), *(_stays_in_range(schedule, option) for schedule, option in scheduled.items()))


def unusable(algorithm: Algorithm) -> tuple[Constraint, ...]:
    """Return the conditions that leave group options at their defaults, if an algorithm has no use for them."""
    constraints = []
    if isinstance(algorithm, Iterative):
        for option in GROUP_OPTIONS:
            if option.name in OF_PARAMETERS | {RULES} and option.name not in (LR_SCHEDULE, SCHEDULES):
                text_ = f"left out, as {algorithm.name} looks at all parameters as one vector"
                constraints.append(Constraint(text_, _differs(option), option.name))
    if algorithm.takes_values:
        for option in GROUP_OPTIONS:
            if option.name in (CLIP_NORM, CLIP_VALUE, LOOKAHEAD_STEPS):
                text_ = f"None, as {algorithm.name} sets weights to the very values that are pushed"
                constraints.append(Constraint(text_, _differs(option), option.name))
    scheduled, refused = scheduled_options(algorithm), {constraint.option for constraint in constraints}
    if LR_SCHEDULE not in scheduled:
        constraints.append(Constraint("None, as there is no lr", _is_set(LR_SCHEDULE), LR_SCHEDULE))
    if MOMENTUM_SCHEDULE not in scheduled and MOMENTUM_SCHEDULE not in refused:
        text_ = "None, as there is neither momentum nor betas"
        constraints.append(Constraint(text_, _is_set(MOMENTUM_SCHEDULE), MOMENTUM_SCHEDULE))
    return tuple(constraints)


def scheduled_options(algorithm: Algorithm) -> dict[str, Option]:
    """Return the option that each schedule multiplies, by the schedule's name; of `betas` it is the first number."""
    declared = {option.name: option for option in algorithm.options}
    found = {LR_SCHEDULE: declared.get("lr"), MOMENTUM_SCHEDULE: declared.get("momentum", declared.get("betas"))}
    return {schedule: option for schedule, option in found.items() if option is not None}


def _stays_in_range(schedule: str, option: Option) -> Constraint:
    """Return the condition that a scheduled option stays in its range at every version."""
    name, bounds = (f"{option.name}[0]", option.entries[0]) if option.entries else (option.name, option.range)

    def broken(options: Options) -> bool:
        written = text(options, schedule)
        if written is None:
            return False
        value = floats(options, option.name)[0] if option.entries else number(options, option.name)
        return not all(bounds.holds(value * factor) for factor in parse(written).bounds)

    return Constraint(f"one under which {name} stays in {bounds}", broken, schedule)


def _differs(option: Option) -> Callable[[Options], bool]:
    return lambda options: options[option.name] != option.default


def _is_set(name: str) -> Callable[[Options], bool]:
    return lambda options: options[name] is not None


def schedulable(algorithm: Algorithm) -> dict[str, Target]:
    """Return the numbers that `schedules` may multiply in a group of this algorithm, by name."""
    of_groups = () if isinstance(algorithm, Iterative) else _SCHEDULED
    return targets((*algorithm.options, *of_groups))


def effective(options: Options, version: int) -> Options:
    """Return the options that the step from `version` uses; without a schedule, the same mapping."""
    start = integer(options, SCHEDULE_START) if SCHEDULE_START in options else 0
    return at(options, max(0, version - start))
