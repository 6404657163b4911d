"""The options of each parameter: those of its group, overridden by the group's rules for names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache

from optd_server.engine.options.resolution import resolve_options
from optd_server.optim.algorithm import Algorithm, StateField
from optd_server.optim.group_options import GROUP_OPTIONS, OF_PARAMETERS
from optd_server.optim.rules import RULES, Matches, NameRule, parse
from optd_server.optim.scheduled import SCHEDULES, parse_schedules
from optd_wire.errors import InvalidRule, RuleMatchesNothing
from optd_wire.values import Options

_OF_GROUPS = {option.name for option in GROUP_OPTIONS} - OF_PARAMETERS


def match(options: Options, names: Sequence[str]) -> Matches | None:
    """Matches a group's rules with its parameters' names; None if it has no rules. Takes time rules x names."""
    written = options.get(RULES)
    return None if written is None else _matches(str(written), tuple(names))


@lru_cache(maxsize=16)
def _matches(written: str, names: tuple[str, ...]) -> Matches:
    """Cached, because a registration asks for the same names several times before a group exists that remembers."""
    return Matches(written, names)


def check_rules(algorithm: Algorithm, options: Options, matches: Matches | None) -> None:
    """Raises the first problem of a group's rules, or of the options that they give some parameter."""
    if matches is None:
        return
    for rule in parse(matches.written):
        for name, _ in rule.options:
            if name in _OF_GROUPS:
                raise InvalidRule(match=rule.match, problem=f"{name} is of a whole group, not of some parameters")
        _check_schedules(rule)
        resolve_options(algorithm, options, dict(rule.options))
    distinct(algorithm, options, matches)


def _check_schedules(rule: NameRule) -> None:
    """Raises `InvalidRule` if a rule schedules an option that belongs to the whole group."""
    written = dict(rule.options).get(SCHEDULES)
    try:
        of_groups = sorted(_OF_GROUPS.intersection(parse_schedules(written))) if isinstance(written, str) else ()
    except ValueError:
        return  # `resolve_options` reports it
    for name in of_groups:
        raise InvalidRule(match=rule.match, problem=f"{name} is of a whole group, and so is its schedule")


def distinct(algorithm: Algorithm, options: Options, matches: Matches | None) -> list[Options]:
    """Returns the distinct options of a group's parameters, in the order of `overrides`; without rules the group's."""
    if matches is None:
        return [options]
    return [resolve_options(algorithm, options, changed) if changed else options for changed in matches.overrides]


def deal(algorithm: Algorithm, options: Options, matches: Matches) -> list[Options]:
    """Returns the resolved options of each parameter of a group. Parameters with equal options share one object."""
    found = distinct(algorithm, options, matches)
    return [found[place] for place in matches.which]


def fields(algorithm: Algorithm, options: Options, matches: Matches | None) -> set[StateField]:
    """Returns the state fields that at least one parameter of a group needs."""
    return {field for each in distinct(algorithm, options, matches) for field in algorithm.fields(each)}


def check_matches(changed: Iterable[Matches | None], others: Iterable[Matches | None] = ()) -> None:
    """Raises `RuleMatchesNothing` if a rule of the `changed` groups matches no parameter of any group.

    `others` are the matches of the groups whose rules stay the same.
    """
    unmatched: dict[str, list[str]] = {}
    matched: set[str] = set()
    for each in filter(None, changed):
        matched |= each.matched
        for pattern in each.unmatched:
            unmatched.setdefault(pattern, []).extend(each.names)
    for each in filter(None, others):
        matched |= each.matched
    for pattern in sorted(unmatched.keys() - matched):
        names = unmatched[pattern]
        raise RuleMatchesNothing(match=pattern, advice=_advice(pattern, names))


def _advice(pattern: str, names: Sequence[str]) -> str:
    if pattern in names:
        return "[...] stands for one of some characters, and [[] for a bracket"
    near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"there are such as {', '.join(near)}" if near else "there are no parameters"
