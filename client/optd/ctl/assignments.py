"""`NAME=VALUE` on a command line to options: numbers, booleans, lists of numbers, none, and else texts."""

import re
from collections.abc import Iterable

from optd.ctl.exits import BadUsage
from optd_wire.values import OptionValue

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
# More digits than the contract's integers have; such a number travels as a float.
_MOST_DIGITS = 18
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


def parse(assignments: Iterable[str]) -> dict[str, OptionValue]:
    """Options by name; raises `BadUsage` for the first one that is wrong."""
    options: dict[str, OptionValue] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or _NAME.fullmatch(name) is None:
            raise BadUsage(f"{assignment!r} is not NAME=VALUE, such as lr=0.001")
        if name in options:
            raise BadUsage(f"{name} is given twice")
        options[name] = _value(name, value.strip())
    return options


def _value(name: str, given: str) -> OptionValue:
    if not given:
        raise BadUsage(f"{name}= has no value")
    if given.lower() in _WORDS:
        return _WORDS[given.lower()]
    inner = given[1:-1] if given[0] + given[-1] in ("()", "[]") else given
    if inner == given and "," not in given:
        number = _number(given)
        return given if number is None else number
    elements = [element.strip() for element in inner.split(",")]
    if elements[-1] == "":  # (0.9,) is one number, as in Python
        elements.pop()
    numbers = [_number(element) for element in elements]
    if None in numbers:
        return given
    return tuple(float(number) for number in numbers if number is not None)


def _number(given: str) -> int | float | None:
    """A number; None for other text, such as a schedule."""
    if _INTEGER.fullmatch(given) and len(given) <= _MOST_DIGITS:
        return int(given)
    try:
        return float(given)
    except ValueError:
        return None
