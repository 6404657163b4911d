"""Rules: options of those parameters of a group whose names match a pattern, as people write them.

    [{"match": "*.bias", "weight_decay": 0}, {"match": "norm.*", "lr": 0.01, "weight_decay": 0}]

Patterns are those of file names, and match whole names. All rules that match apply; if two set the same option, the
later one wins.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import cast

from optd_server.optim.option import Option, Options, OptionValue

RULES = "rules"
MATCH = "match"
LONGEST = 20_000
MOST = 100
_FORM = 'a list of rules such as [{"match": "*.bias", "weight_decay": 0}]'


@dataclass(frozen=True)
class NameRule:
    """A pattern, and the options of the parameters whose names it matches."""

    match: str
    options: tuple[tuple[str, OptionValue], ...]

    def matches(self, name: str) -> bool:
        """Whether the pattern matches a parameter's name."""
        return self._pattern.match(name) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(translate(self.match))


@lru_cache(maxsize=256)
def parse(written: str) -> tuple[NameRule, ...]:
    """Return the rules that a text stands for. Raises ValueError, whose message says what the text must be."""
    if len(written) > LONGEST:
        raise ValueError(f"rules of at most {LONGEST} characters")
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        raise ValueError(_FORM) from None
    if not isinstance(found, list) or not found or not all(isinstance(rule, dict) for rule in found):
        raise ValueError(_FORM)
    if len(found) > MOST:
        raise ValueError(f"at most {MOST} rules")
    return tuple(_rule(rule) for rule in cast(Sequence[Mapping[str, object]], found))


def _rule(given: Mapping[str, object]) -> NameRule:
    match = given.get(MATCH)
    if not isinstance(match, str) or not match:
        raise ValueError(f'rules that each have a pattern, as {{"{MATCH}": "*.bias"}}')
    options = tuple((name, _value(match, name, value)) for name, value in given.items() if name != MATCH)
    if not options:
        raise ValueError(f"rules that each set an option, unlike the one for {match!r}")
    return NameRule(match, options)


def _value(match: str, name: str, value: object) -> OptionValue:
    if isinstance(value, list):
        value = tuple(value)
    entries = value if isinstance(value, tuple) else (value,)
    if not all(entry is None or isinstance(entry, bool | int | float | str) for entry in entries):
        raise ValueError(f"rules with plain values, unlike {name} of the one for {match!r}")
    return cast(OptionValue, value)


class Matches:
    """Which of some names the rules of a text match, and what they set."""

    def __init__(self, written: str, names: Sequence[str]) -> None:
        self.written = written
        self.names = names
        self.overrides: list[Options] = []
        """The distinct sets of options that the rules set for some name."""
        self.which: list[int] = []
        """For each name, the index in `overrides` of its options."""
        rules = parse(written)
        known: dict[tuple[bool, ...], int] = {}
        for name in names:
            matching = tuple([rule.matches(name) for rule in rules])
            if matching not in known:
                known[matching] = len(self.overrides)
                chosen = [rule for rule, matches in zip(rules, matching, strict=True) if matches]
                self.overrides.append({option: value for rule in chosen for option, value in rule.options})
            self.which.append(known[matching])
        used = [any(column) for column in zip(*known, strict=True)] or [False] * len(rules)
        self.matched = {rule.match for rule, use in zip(rules, used, strict=True) if use}
        """The patterns that match some name."""
        self.unmatched = {rule.match for rule in rules} - self.matched


RULES_OPTION = Option(
    RULES,
    "text",
    None,
    nullable=True,
    parse=parse,
    doc='Options of single parameters by name: a list such as `[{"match": "*.bias", "weight_decay": 0}]`, as JSON on '
    "the wire. If two rules set the same option, the later one counts.",
)
