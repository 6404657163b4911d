"""Rules for names: `rules=[{"match": "*.bias", "weight_decay": 0}]`, an option that every group may have.

A rule sets options of the parameters whose whole names match its pattern, which is written as for file names. All
matching rules count; if two set the same option, the later one wins. They may set the algorithm's own options,
schedules and `master_weights`. On the wire and in `optctl set` they are JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rules = Sequence[Mapping[str, Any]]
MATCH = "match"


def are_rules(value: object) -> bool:
    """Whether a value is a list of rules, and not their text."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return bool(value) and all(isinstance(rule, Mapping) for rule in value)


def rules_text(rules: Rules, plain: Callable[[Any], Any]) -> str:
    """The text of rules; `plain` turns a value into an option's value."""
    return json.dumps([{str(name): plain(value) for name, value in rule.items()} for rule in rules])
