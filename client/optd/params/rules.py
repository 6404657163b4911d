"""Rules for names: `rules=[{"match": "*.bias", "weight_decay": 0}]`, an option that every group may have.

A rule sets options of those parameters of a group whose names match its pattern, which is one of file names and for
whole names. All rules that match count; where two set the same option, the later one does. What they may set are the
algorithm's own options, schedules and `master_weights`. On the wire and in `optctl set` they are JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rules = Sequence[Mapping[str, Any]]
MATCH = "match"


def are_rules(value: object) -> bool:
    """Whether a value is a list of rules, not yet a text."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return bool(value) and all(isinstance(rule, Mapping) for rule in value)


def rules_text(rules: Rules, plain: Callable[[Any], Any]) -> str:
    """The text of rules; `plain` makes values what options are."""
    return json.dumps([{str(name): plain(value) for name, value in rule.items()} for rule in rules])
