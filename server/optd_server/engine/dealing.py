"""The options of each parameter: those of its group, changed by the group's rules for names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from optd_server.engine.options import resolve_options
from optd_server.optim.algorithm import Algorithm, StateField
from optd_server.optim.group_options import GROUP_OPTIONS, OF_PARAMETERS
from optd_server.optim.rules import RULES, NameRule, overrides, parse
from optd_wire.errors import InvalidRule, RuleMatchesNothing
from optd_wire.values import Options

_OF_GROUPS = {option.name for option in GROUP_OPTIONS} - OF_PARAMETERS


def rules_of(options: Options) -> tuple[NameRule, ...]:
    """The rules of a group with these resolved options."""
    written = options.get(RULES)
    return () if written is None else parse(str(written))


def deal(algorithm: Algorithm, options: Options, names: Iterable[str]) -> list[Options] | None:
    """For each parameter of a group by its name its resolved options, equal ones as one object; None: the group's.

    Raises `InvalidRule` for an option that is of whole groups only, or what `resolve_options` raises.
    """
    rules = rules_of(options)
    if not rules:
        return None
    for rule in rules:
        for name, _ in rule.options:
            if name in _OF_GROUPS:
                raise InvalidRule(match=rule.match, problem=f"{name} is of a whole group, not of some parameters")
        resolve_options(algorithm, options, dict(rule.options))
    known: dict[object, Options] = {(): options}
    return [_of(algorithm, options, overrides(rules, name), known) for name in names]


def _of(algorithm: Algorithm, options: Options, changed: Options, known: dict[object, Options]) -> Options:
    key = tuple(sorted(changed.items()))
    if key not in known:
        known[key] = resolve_options(algorithm, options, changed)
    return known[key]


def fields(algorithm: Algorithm, options: Options, names: Iterable[str]) -> set[StateField]:
    """The state fields that some parameter of a group needs."""
    distinct = {id(each): each for each in deal(algorithm, options, names) or [options]}
    return {field for each in distinct.values() for field in algorithm.fields(each)}


def check_matches(groups: Sequence[tuple[Options, Sequence[str]]]) -> None:
    """Raises `RuleMatchesNothing` for a rule that matches no parameter of any group that has it.

    `groups` are resolved options with the names of parameters.
    """
    unmatched: dict[str, list[str]] = {}
    matched: set[str] = set()
    for options, names in groups:
        for rule in rules_of(options):
            if any(map(rule.matches, names)):
                matched.add(rule.match)
            else:
                unmatched.setdefault(rule.match, []).extend(names)
    for match, names in unmatched.items():
        if match not in matched:
            near = get_close_matches(match, names, n=3, cutoff=0.3) or names[:3]
            raise RuleMatchesNothing(match=match, names=", ".join(near))
