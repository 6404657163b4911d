"""The JSON of `-o json`: plain values of the contract as dicts with the names of its fields.

A listing is a list. A policy is the arm of its message, with the settings that it has: `{"sync": {"workers": 4}}` or
`{"async": {}}`. Numbers that
JSON does not have are the strings that protobuf's JSON has for them: "NaN", "Infinity", "-Infinity".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from optd_wire.values import Policy


def document(value: Any) -> Any:
    """A value in terms of dicts, lists, strings, numbers, booleans and None."""
    match value:
        case Mapping():
            return {key: document(item) for key, item in value.items()}
        case tuple() | list():
            return [document(item) for item in value]
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case _ if isinstance(value, Policy):
            given = {name: part for name, part in _fields(value).items() if part is not None}
            return {type(value).__name__.lower(): given}
        case _ if is_dataclass(value):
            return _fields(value)
        case _:
            return value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: document(getattr(value, field.name)) for field in fields(value)}


def dump(value: Any, indent: int | None = 2) -> str:
    """A value as one JSON text, on one line without `indent`."""
    return json.dumps(document(value), indent=indent, ensure_ascii=False, allow_nan=False)
