"""Checks options against the declarations of their algorithm, and fills in the defaults."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from optd_server.optim import option, scheduled
from optd_server.optim.algorithm import Algorithm, Iterative
from optd_server.optim.algorithms import registry
from optd_server.optim.group_options import GROUP_OPTIONS, group_constraints, schedulable, unusable
from optd_server.optim.job_options import JOB
from optd_server.optim.option import Constraint, Declaration, Option
from optd_server.optim.scheduled import SCHEDULES
from optd_wire.errors import InvalidOption, OptionOutOfRange, UnknownAlgorithm, UnknownOption
from optd_wire.values import AlgorithmInfo, GroupSpec, OptionInfo, Options

_OF_EVERY_GROUP = frozenset(option.name for option in GROUP_OPTIONS)


def find_algorithm(name: str) -> Algorithm:
    """Returns the algorithm of this name; raises `UnknownAlgorithm`, which suggests the nearest name."""
    algorithm = registry.find(name)
    if algorithm is None:
        nearest = registry.nearest(name)
        advice = f"the nearest is {nearest!r}" if nearest else f"there are {', '.join(registry.ALGORITHMS)}"
        raise UnknownAlgorithm(algorithm=name, advice=advice)
    return algorithm


def algorithm_of(group: GroupSpec, algorithm: Algorithm) -> Algorithm:
    """Returns the algorithm of a group in a job whose own is `algorithm`; raises `UnknownAlgorithm`."""
    return find_algorithm(group.algorithm) if group.algorithm else algorithm


def resolve_group(group: GroupSpec, algorithm: Algorithm, defaults: Options) -> Options:
    """Returns all options of a new group in a job with this algorithm and these defaults.

    The defaults are options of the job's algorithm. A group of another algorithm takes from them only the options that
    every group has, and otherwise starts from the defaults of its own algorithm. Raises `UnknownAlgorithm`, or what
    `resolve_options` raises.
    """
    own = algorithm_of(group, algorithm)
    if own is not algorithm:
        defaults = {name: value for name, value in defaults.items() if name in _OF_EVERY_GROUP}
    return resolve_options(own, defaults, group.options)


@dataclass(frozen=True)
class Schema:
    """The options of the groups of an algorithm: its own, and those that every group has."""

    name: str
    options: tuple[Option, ...]
    constraints: tuple[Constraint, ...]


@cache
def schema_of(algorithm: Algorithm) -> Schema:
    """Returns the schema of an algorithm's groups."""
    return Schema(
        algorithm.name,
        (*algorithm.options, *GROUP_OPTIONS),
        (*(each for each in algorithm.constraints if not each.of_defaults), *group_constraints(algorithm)),
    )


def check_defaults(algorithm: Algorithm, defaults: Options) -> None:
    """Checks the defaults of a job, which some constraints restrict more than the options of a group.

    Raises what `resolve_options` raises.
    """
    resolve_options(algorithm, defaults)
    own = {name: value for name, value in defaults.items() if any(name == each.name for each in algorithm.options)}
    _resolve(algorithm, [own])


def resolve_options(algorithm: Algorithm, *layers: Options) -> Options:
    """Returns all options of a group: the defaults, overridden by each layer in turn.

    Options that every group has are left out while they have their default, as most of them do in most groups. Raises
    `UnknownOption`, `OptionOutOfRange` or `InvalidOption`.
    """
    resolved = _resolve(schema_of(algorithm), layers)
    if resolved[SCHEDULES] is not None:
        _check_schedules(algorithm, resolved)
    idle = {option.name for option in GROUP_OPTIONS if resolved[option.name] == option.default}
    return {name: value for name, value in resolved.items() if name not in idle}


def _check_schedules(algorithm: Algorithm, options: Options) -> None:
    """Raises `UnknownOption` or `InvalidOption` for a problem of the schedules in resolved options."""
    declared = schedulable(algorithm)
    found = scheduled.problem(declared, options)
    if isinstance(found, scheduled.Stray):
        hint = f"did you mean {found.nearest!r}? The scheduled" if found.nearest else "scheduled"
        raise UnknownOption(algorithm=algorithm.name, option=found.name, advice=hint, options=", ".join(declared))
    if found is not None:
        raise InvalidOption(algorithm=algorithm.name, option=found.option, bound=found.bound, value=found.value)


def check_fixed(algorithm: Algorithm, current: Options, wanted: Options) -> None:
    """Raises `InvalidOption` if an option would change that is fixed."""
    for declared in algorithm.options:
        name = declared.name
        if declared.fixed and wanted[name] != current[name]:
            bound = f"{current[name]}, which it was at first and stays"
            raise InvalidOption(algorithm=algorithm.name, option=name, bound=bound, value=wanted[name])


def resolve_job_options(*layers: Options) -> Options:
    """Returns all options of a job as a whole; raises what `resolve_options` raises."""
    return _resolve(JOB, layers)


def _resolve(declared: Declaration, layers: Iterable[Options]) -> Options:
    given: dict[str, object] = {}
    for layer in layers:
        given.update(layer)
    stray = option.unknown(declared.options, given)
    if stray is not None:
        name, nearest = stray
        names = ", ".join(each.name for each in declared.options)
        advice = f"did you mean {nearest!r}? The" if nearest else "the"
        raise UnknownOption(algorithm=declared.name, option=name, advice=advice, options=names)
    violation = option.check(declared, given)
    if violation is not None:
        in_range = violation.bound[0] in "[("
        raise (OptionOutOfRange if in_range else InvalidOption)(
            algorithm=declared.name, option=violation.option, bound=violation.bound, value=violation.value
        )
    return option.resolve(declared.options, given)


def describe_algorithms() -> tuple[AlgorithmInfo, ...]:
    """Describes every algorithm as it declares itself: options, state, constraints."""
    return tuple(_describe(algorithm) for algorithm in registry.ALGORITHMS.values())


def describe_group_options() -> tuple[OptionInfo, ...]:
    """Describes the options that every group has, besides those of its algorithm."""
    return tuple(map(_describe_option, GROUP_OPTIONS))


def describe_job_options() -> tuple[OptionInfo, ...]:
    """Describes the options of a job as a whole."""
    return tuple(map(_describe_option, JOB.options))


def _describe_option(declared: Option) -> OptionInfo:
    return OptionInfo(
        name=declared.name,
        kind=declared.kind,
        default_value=declared.default,
        range="" if declared.choices else declared.range_text,
        doc=declared.doc,
        nullable=declared.nullable,
        choices=declared.choices,
    )


def _describe(algorithm: Algorithm) -> AlgorithmInfo:
    return AlgorithmInfo(
        name=algorithm.name,
        title=algorithm.title,
        options=tuple(map(_describe_option, algorithm.options)),
        state=tuple(field.name for field in algorithm.state),
        rules=tuple(f"{each.option} must be {each.text}" for each in (*algorithm.constraints, *unusable(algorithm))),
        doc=algorithm.doc,
        package=registry.package_of(algorithm.name),
        needs_closure=isinstance(algorithm, Iterative),
        shaped_state=tuple(field.name for field in algorithm.state if not field.elementwise),
    )
