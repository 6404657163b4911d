"""Options: declared once, with kind, default, range and meaning. Checks, messages and documentation follow from that.

Call `unknown`, `check` and `resolve` in this order. The first two say what is wrong with the given values; `resolve`
then returns the complete options that the rest of the package works with.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast

import numpy as np

from optd_server.optim.spelling import nearest

OptionValue: TypeAlias = bool | int | float | str | tuple[float | None, ...] | None
Options: TypeAlias = Mapping[str, OptionValue]
Kind: TypeAlias = Literal["float", "int", "bool", "floats", "text"]

# What other libraries call these options.
_SYNONYMS = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "step_size": "lr",
    "eta": "lr",
    "beta": "betas",
    "beta1": "betas",
    "beta2": "betas",
    "beta_1": "betas",
    "beta_2": "betas",
    "b1": "betas",
    "b2": "betas",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "decay": "weight_decay",
    "epsilon": "eps",
    "mu": "momentum",
    "decoupled": "decoupled_weight_decay",
}
MOST = (1 << 63) - 1
"""The largest whole number that an option may be: the limit of 64 bits, on the wire and in step counts."""
_LONGEST_SHOWN = 64  # characters of a rejected value that an error repeats


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; None means no bound. NaN never fits, and infinity only if `infinite` is set."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    nullable: bool = False
    """Whether None fits as well."""
    infinite: bool = False
    """Whether infinity fits on a side without a bound."""

    def __str__(self) -> str:
        """In interval notation: ``[0, 1)``."""
        endless = "[]" if self.infinite else "()"
        left = f"{endless[0]}-inf" if self.low is None else ("(" if self.low_open else "[") + _number_text(self.low)
        right = f"inf{endless[1]}" if self.high is None else _number_text(self.high) + (")" if self.high_open else "]")
        return f"{left}, {right}"

    def holds(self, number: float) -> bool:
        """Whether a number lies in the range."""
        if math.isnan(number) or (math.isinf(number) and not self.infinite):
            return False
        above = self.low is None or (number > self.low if self.low_open else number >= self.low)
        below = self.high is None or (number < self.high if self.high_open else number <= self.high)
        return above and below


ANY = Range()


@dataclass(frozen=True)
class Option:
    """One option: its name, kind, default, range and meaning."""

    name: str
    kind: Kind
    default: OptionValue
    range: Range = ANY
    """The range of a "float" or "int" option, and of every number of a "floats" option without `entries`."""
    entries: tuple[Range, ...] = ()
    """The range of each number of a "floats" option that has a fixed length."""
    nullable: bool = False
    """Whether the whole option may be None."""
    choices: tuple[str, ...] = ()
    """The values that a "text" option may have; empty means any."""
    parse: Callable[[str], object] | None = None
    """Checks a "text" option: raises ValueError, whose message says what the text must be, if it is malformed."""
    fixed: bool = False
    """Whether a group keeps the value that it starts with."""
    every_step: bool = True
    """Whether every step reads it, so that a schedule of it has an effect."""
    doc: str = ""
    """What it does, in full sentences: in which unit, and what None means. Range and default are added to this text
    wherever it is shown, which is in the client's docstrings and in `optctl algorithms`."""

    @property
    def range_text(self) -> str:
        """The range of its numbers, or its choices, for people; empty if it has neither."""
        if self.kind in ("float", "int"):
            return str(self.range)
        if self.kind == "floats":
            distinct = dict.fromkeys(str(each) for each in self.entries)
            return (
                str(self.range)
                if not distinct
                else " x ".join(distinct if len(distinct) == 1 else map(str, self.entries))
            )
        return ", ".join(self.choices)


@dataclass(frozen=True)
class Constraint:
    """A condition across options.

    `broken` gets complete options, each of the right kind and in its range.
    """

    text: str
    """What `option` must be, as the end of "<option> must be …"."""
    broken: Callable[[Options], bool]
    option: str
    """The option that an error names."""
    of_defaults: bool = False
    """Whether only the defaults of a job must meet it, as torch checks some conditions in its constructor only."""


@dataclass(frozen=True)
class Violation:
    """What is wrong with an option: its name, what it must be, and what was given."""

    option: str
    """The option's name, with an index if one of several numbers is wrong: ``betas[0]``."""
    bound: str
    """A range (``[0, 1)``), a kind (``a number``, ``true or false``, ``2 numbers``), choices, or constraint text."""
    value: str

    def __str__(self) -> str:
        within = "in " if self.bound[0] in "[(" else ""
        return f"{self.option} must be {within}{self.bound}, got {self.value}"


class Declaration(Protocol):
    """What `check` needs to know of an algorithm, or of anything else that has options."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def options(self) -> Sequence[Option]:
        """The options it declares."""

    @property
    def constraints(self) -> Sequence[Constraint]:
        """The conditions across them."""


def unknown(declared: Sequence[Option], given: Mapping[str, object]) -> tuple[str, str | None] | None:
    """Return the first name that is not declared, and the nearest that is or None. None: all are declared."""
    names = [option.name for option in declared]
    for name in given:
        if name not in names:
            return name, nearest(name, names, _SYNONYMS)
    return None


def check(algorithm: Declaration, options: Mapping[str, object]) -> Violation | None:
    """Return the first thing wrong with the values of `options`, or None.

    Options that are left out have their defaults. Ranges are checked in the order of the declaration, then
    the constraints. Raises KeyError for a name that is not declared; `unknown` finds such names.
    """
    resolved = resolve(algorithm.options, options)
    for option in algorithm.options:
        violation = _violation(option, resolved[option.name])
        if violation is not None:
            return violation
    for constraint in algorithm.constraints:
        if constraint.broken(resolved):
            return Violation(constraint.option, constraint.text, _value_text(resolved[constraint.option]))
    return None


def resolve(declared: Sequence[Option], given: Mapping[str, object]) -> dict[str, OptionValue]:
    """Return all declared options, in the order of the declaration, with the given values or the defaults.

    Values become plain Python values of the option's kind: an int or numpy scalar becomes a float, a list becomes
    a tuple. A value of another kind stays as it is, for `check` to report. Raises KeyError for a name that is not
    declared.
    """
    for name in given:
        if all(name != option.name for option in declared):
            raise KeyError(name)
    return {option.name: _coerced(option.kind, given.get(option.name, option.default)) for option in declared}


def number(options: Options, name: str) -> float:
    """Return a "float" option of resolved options; as a numpy float32 if `is_single`."""
    value = options[name]
    # Asked for in every step; most numbers are plain.
    return value if type(value) is float else _computing(cast(float, value))


def flag(options: Options, name: str) -> bool:
    """Return a "bool" option of resolved options."""
    return cast(bool, options[name])


def integer(options: Options, name: str) -> int:
    """Return an "int" option of resolved options."""
    return cast(int, options[name])


def text(options: Options, name: str) -> str | None:
    """Return a "text" option of resolved options; None if it is nullable and not set."""
    return cast("str | None", options[name])


def floats(options: Options, name: str) -> tuple[float, ...]:
    """Return a "floats" option of resolved options; no entry may be None."""
    return tuple([each if type(each) is float else _computing(each) for each in cast(tuple[float, ...], options[name])])


def is_single(value: object) -> bool:
    """Whether arithmetic with a number is in float32: the class of a float that arrived as a float32 says so."""
    return getattr(type(value), "is_single", False)


def singles(options: Options) -> tuple[str, ...]:
    """Return the names of options that are, or contain, numbers whose arithmetic is in float32."""
    return tuple(
        name for name, value in options.items() if any(map(is_single, value if isinstance(value, tuple) else (value,)))
    )


def _computing(value: float) -> float:
    return cast(float, np.float32(value)) if is_single(value) else value


def _coerced(kind: Kind, value: object) -> OptionValue:
    if kind == "bool" and (isinstance(value, np.bool_) or (isinstance(value, int) and value in (0, 1))):
        return bool(value)  # torch accepts each of them
    if kind == "float" and _is_number(value):
        return cast(float, value) if is_single(value) else _float(value)
    if kind == "int" and _is_number(value) and _float(value).is_integer():
        return int(cast(float, value))
    if kind == "text" and _is_sequence(value) and not len(cast(Sequence[object], value)):
        return None  # no rules
    if kind == "floats" and _is_sequence(value):
        # Elements of a wrong kind stay, so that the report can name them.
        elements = cast(Sequence[object], value)
        return tuple(cast(float, _coerced("float", element)) for element in elements)
    return cast(OptionValue, value)


def _is_sequence(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _float(value: object) -> float:
    try:
        return float(cast(float, value))
    except OverflowError:  # an int past the range of float64
        return math.inf


def _violation(option: Option, value: OptionValue) -> Violation | None:
    if value is None and option.nullable:
        return None
    match option.kind:
        case "bool":
            return None if isinstance(value, bool) else Violation(option.name, "true or false", _value_text(value))
        case "text":
            return _violation_of_text(option, value)
        case "int" if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST:
            too_large = isinstance(value, int) and abs(value) > MOST
            bound = f"a whole number of at most {MOST}" if too_large else "a whole number"
            return Violation(option.name, bound, _value_text(value))
        case "float" | "int":
            return _violation_of_number(option.range, option.name, value)
        case "floats":
            return _violation_of_numbers(option, value)


def _violation_of_text(option: Option, value: OptionValue) -> Violation | None:
    if not isinstance(value, str):
        return Violation(option.name, "a text", _value_text(value))
    if option.choices and value not in option.choices:
        return Violation(option.name, "one of " + ", ".join(map(repr, option.choices)), _value_text(value))
    if option.parse is not None:
        try:
            option.parse(value)
        except ValueError as problem:
            return Violation(option.name, str(problem), _value_text(value))
    return None


def _violation_of_numbers(option: Option, value: OptionValue) -> Violation | None:
    count = len(option.entries)
    if not isinstance(value, tuple) or (count and count != len(value)):
        return Violation(option.name, f"{count} numbers" if count else "numbers", _value_text(value))
    ranges = option.entries or (option.range,) * len(value)
    found = (
        _violation_of_number(each, f"{option.name}[{i}]", entry)
        for i, (each, entry) in enumerate(zip(ranges, value, strict=True))
    )
    return next((violation for violation in found if violation is not None), None)


def _violation_of_number(bounds: Range, name: str, value: OptionValue) -> Violation | None:
    if value is None and bounds.nullable:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return Violation(name, "a number", _value_text(value))
    return None if bounds.holds(value) else Violation(name, str(bounds), _value_text(value))


def _number_text(value: float) -> str:
    return repr(value).removesuffix(".0")


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float):
        text = _number_text(value)
    elif isinstance(value, tuple):
        entries = [_value_text(element) for element in value[:_LONGEST_SHOWN]]
        text = f"({entries[0]},)" if len(entries) == 1 else f"({', '.join(entries)})"
    elif isinstance(value, int) and abs(value) > MOST:
        text = f"{_float(value):g}"  # Python refuses to write the longest ones
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
