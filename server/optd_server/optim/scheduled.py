"""Which options of a group follow schedules: `lr_schedule` and `momentum_schedule`, and `schedules` for all numbers.

`schedules` is a JSON object, `{"weight_decay": "cosine(steps=1000)", "betas[1]": "linear(10, 0.9, 1)"}`: it maps the
name of an option, or of one of its numbers, to the schedule whose factors the number is multiplied by.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from optd_server.optim.lookahead import ALPHA, LOOKAHEAD_ALPHA
from optd_server.optim.option import Option, Options, OptionValue, Range, Violation
from optd_server.optim.schedules.schedule import Curve
from optd_server.optim.schedules.text import parse, schedule_option
from optd_server.optim.spelling import nearest

LR_SCHEDULE = "lr_schedule"
MOMENTUM_SCHEDULE = "momentum_schedule"
SCHEDULES = "schedules"
LONGEST = 20_000
_FORM = 'schedules by the names of options, such as {"weight_decay": "cosine(steps=1000)"}'
_DEFAULTS: Options = {LOOKAHEAD_ALPHA: ALPHA}
"""The default of options that a group may omit."""


class Written(NamedTuple):
    """A schedule as it was written, and its curve."""

    text: str
    curve: Curve


@dataclass(frozen=True)
class Target:
    """A number that may have a schedule: an option, or one of its numbers."""

    option: str
    place: int | None
    range: Range

    @property
    def name(self) -> str:
        """`weight_decay`, or `betas[1]`."""
        return self.option if self.place is None else f"{self.option}[{self.place}]"

    def of(self, options: Options) -> float | None:
        """Its value in resolved options; None if it is not set."""
        value = options.get(self.option, _DEFAULTS.get(self.option))
        if isinstance(value, tuple):
            value = None if self.place is None else value[self.place]
        return value if isinstance(value, float) else None

    def put(self, options: dict[str, OptionValue], value: float) -> None:
        """Set it to another value."""
        known = options.get(self.option)
        if self.place is None or not isinstance(known, tuple):
            options[self.option] = value
        else:
            options[self.option] = (*known[: self.place], value, *known[self.place + 1 :])


@lru_cache(maxsize=256)
def parse_schedules(written: str) -> Mapping[str, Written]:
    """Return the schedules that a text stands for, by the names of their numbers. Raises ValueError as `parse` does."""
    if len(written) > LONGEST:
        raise ValueError(f"schedules of at most {LONGEST} characters")
    try:
        found = json.loads(written, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise ValueError(_FORM) from None
    # An empty list is JSON, too; an object arrives here as its pairs.
    if not isinstance(found, list) or not found or not written.lstrip().startswith("{"):
        raise ValueError(_FORM)
    schedules: dict[str, Written] = {}
    for name, text in found:
        if not isinstance(text, str):
            raise ValueError(_FORM)
        if name in schedules:
            raise ValueError(f"one schedule for {name!r}, and not two")
        try:
            schedules[name] = Written(text, parse(text))
        except ValueError as problem:
            raise ValueError(f"{problem}, for {name!r}") from None
    return schedules


SCHEDULE_OPTIONS = (
    schedule_option(
        LR_SCHEDULE, "A schedule that multiplies `lr`, such as `cosine(steps=1000)`; depends only on the job's version."
    ),
    schedule_option(
        MOMENTUM_SCHEDULE, "A schedule that multiplies `momentum`, or `betas[0]` if there is no `momentum`."
    ),
    Option(
        SCHEDULES,
        "text",
        None,
        nullable=True,
        parse=parse_schedules,
        doc='Schedules of further options by their names, such as `{"weight_decay": "linear(steps=1000)"}`, as JSON on '
        "the wire.",
    ),
)


def targets(options: Sequence[Option]) -> dict[str, Target]:
    """Return the numbers that may have a schedule, by name."""
    found: list[Target] = []
    for option in options:
        if option.fixed or not option.every_step:
            continue
        if option.kind == "float":
            found.append(Target(option.name, None, option.range))
        found += [Target(option.name, place, entry) for place, entry in enumerate(option.entries)]
    return {target.name: target for target in found}


class Stray(NamedTuple):
    """A schedule whose name is not a number of the options, and the nearest name that is."""

    name: str
    nearest: str | None


def problem(declared: Mapping[str, Target], options: Options) -> Stray | Violation | None:
    """Return the first thing wrong with `schedules` in resolved options of the right kinds, or None."""
    written = options.get(SCHEDULES)
    if not isinstance(written, str):
        return None
    taken = {name: schedule for name, schedule in _named(options).items() if options.get(schedule) is not None}
    for name, (text, curve) in parse_schedules(written).items():
        target = declared.get(name)
        if target is None:
            first = f"{name}[0]"
            return Stray(name, first if first in declared else nearest(name, declared))
        where = f"{SCHEDULES}[{name!r}]"
        if name in taken:
            return Violation(where, f"left out, as {taken[name]} is set", repr(text))
        value = target.of(options)
        if value is None:
            return Violation(where, f"left out while {name} is None: there is nothing to multiply", repr(text))
        if not all(target.range.holds(value * factor) for factor in curve.bounds):
            return Violation(where, f"one under which {name} stays in {target.range}", repr(text))
    return None


def _named(options: Options) -> dict[str, str]:
    """Return the numbers that `lr_schedule` and `momentum_schedule` multiply."""
    return {"lr": LR_SCHEDULE, "momentum" if "momentum" in options else "betas[0]": MOMENTUM_SCHEDULE}


def curves_of(options: Options) -> Mapping[str, Curve]:
    """Return the curves that resolved options set, by the names of their numbers."""
    written = (options.get(LR_SCHEDULE), options.get(MOMENTUM_SCHEDULE), options.get(SCHEDULES))
    if written == (None, None, None):
        return {}
    found: dict[str, Curve] = {}
    for name, schedule in _named(options).items():
        text = options.get(schedule)
        if isinstance(text, str):
            found[name] = parse(text)
    if isinstance(written[2], str):
        found |= {name: curve for name, (_, curve) in parse_schedules(written[2]).items()}
    return found


def at(options: Options, version: int) -> Options:
    """Return options as their schedules have them after so many versions; without schedules, the same object."""
    curves = curves_of(options)
    if not curves:
        return options
    changed = dict(options)
    for name, curve in curves.items():
        target = _target(name)
        value = target.of(options)
        if value is not None:
            target.put(changed, value * curve.factor(version))
    return changed


@lru_cache(maxsize=256)
def _target(name: str) -> Target:
    option, bracket, place = name.partition("[")
    return Target(option, int(place[:-1]) if bracket else None, Range())
