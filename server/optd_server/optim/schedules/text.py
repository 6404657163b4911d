"""How schedules are written: ``cosine(steps=1000, warmup=100)``."""

import ast
from functools import lru_cache

from optd_server.optim import option
from optd_server.optim.option import Option
from optd_server.optim.schedules.curves import SCHEDULES
from optd_server.optim.schedules.schedule import Curve, Schedule
from optd_server.optim.spelling import nearest

LONGEST = 2000
"""Characters of a schedule: a piecewise one may have many numbers."""
_FORM = "a schedule such as cosine(steps=1000, warmup=100)"


@lru_cache(maxsize=1024)
def parse(written: str) -> Curve:
    """Return the curve that a text stands for. Raises ValueError, whose message says what the text must be."""
    schedule, arguments = _read(written)
    strange = option.unknown(schedule.options, arguments)
    if strange is not None:
        name, near = strange
        names = ", ".join(each.name for each in schedule.options)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(f"{schedule.name} with arguments among {names}, not {name!r}{hint}")
    for declared in schedule.options:
        if declared.default is None and declared.name not in arguments:
            raise ValueError(f"{schedule.name} with {declared.name}")
    violation = option.check(schedule, arguments)
    if violation is not None:
        raise ValueError(f"{schedule.name} with {violation.option} {_within(violation.bound)}{violation.bound}")
    return Curve(schedule, tuple(option.resolve(schedule.options, arguments).items()))


def _within(bound: str) -> str:
    return "in " if bound[0] in "[(" else "being "


def _read(written: str) -> tuple[Schedule, dict[str, object]]:
    """Return the schedule and what was given for it."""
    if len(written) > LONGEST:
        raise ValueError(f"a schedule of at most {LONGEST} characters")
    try:
        tree = ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(_FORM) from None
    if isinstance(tree, ast.Name):
        tree = ast.Call(tree, [], [])
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(_FORM)
    schedule = _named(tree.func.id)
    if len(tree.args) > len(schedule.options):
        raise ValueError(f"{schedule.name} with at most {len(schedule.options)} arguments")
    given: list[tuple[str | None, ast.expr]] = [
        (declared.name, value) for declared, value in zip(schedule.options, tree.args, strict=False)
    ]
    arguments: dict[str, object] = {}
    for name, value in [*given, *((keyword.arg, keyword.value) for keyword in tree.keywords)]:
        if name is None or name in arguments:
            raise ValueError(f"{schedule.name} with each argument once")
        arguments[name] = _value(value, schedule, name)
    return schedule, arguments


def _named(name: str) -> Schedule:
    if name not in SCHEDULES:
        near = nearest(name, SCHEDULES)
        hint = f"did you mean {near!r}? There are " if near else "there are "
        raise ValueError(f"{_FORM} ({hint}{', '.join(SCHEDULES)})")
    return SCHEDULES[name]


def _value(node: ast.expr, schedule: Schedule, name: str) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{schedule.name} with a plain value as {name}") from None


def schedule_option(name: str, doc: str) -> Option:
    """Declare an option that is a schedule; None is none."""
    return Option(name, "text", None, nullable=True, parse=parse, doc=doc)
