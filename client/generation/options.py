"""Options as arguments of a Python function: type, default, and one paragraph of a docstring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Declared = Mapping[str, Any]
"""One option as `export` gives it."""

UNBOUNDED = "(-inf, inf)"
_OWN_TYPES = {
    "lr_schedule": "Schedule | str",
    "momentum_schedule": "Schedule | str",
    "schedules": "Schedules | str",
    "rules": "Rules | str",
}
"""Options that travel as texts, and that Python has classes for."""
_SEE = {name: "optd.rules" if name == "rules" else "optd.schedules" for name in _OWN_TYPES}


@dataclass(frozen=True)
class Argument:
    """One argument of a signature."""

    name: str
    type: str
    default: str
    doc: str

    @property
    def line(self) -> str:
        """The argument as a line of a signature, without indentation."""
        return f"{self.name}: {self.type} = {self.default},"


def argument(option: Declared, number: str = "float") -> Argument:
    """Return an option as an argument; `number` is the type of its numbers, which for torch may be tensors."""
    return Argument(option["name"], _type(option, number), literal(option["default"]), documentation(option))


def literal(value: object) -> str:
    """Return a value of the export as Python source."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"({', '.join(map(literal, value))})"
    return repr(value)


def documentation(option: Declared) -> str:
    """Return what the option means, then its range, then its default: one paragraph."""
    sentences = [option["doc"], _bounds(option)]
    if option["name"] in _SEE:
        sentences.append(f"See `{_SEE[option['name']]}`.")
    if option.get("fixed"):
        sentences.append("A group keeps the value that it starts with.")
    sentences.append(f"Default: {literal(option['default'])}.")
    return " ".join(filter(None, sentences))


def _bounds(option: Declared) -> str:
    if "choices" in option:
        choices = [*map(literal, option["choices"]), *(["None"] if option["nullable"] else [])]
        return f"One of {', '.join(choices)}."
    if option["kind"] == "floats":
        return _bounds_of_entries(option["entries"])
    if option["kind"] not in ("float", "int"):
        return ""
    if option["range"] == UNBOUNDED:
        return f"Any {'whole ' if option['kind'] == 'int' else ''}number{', or None' if option['nullable'] else ''}."
    whole = "A whole number in" if option["kind"] == "int" else "In"
    return f"{whole} {option['range']}{', or None' if option['nullable'] else ''}."


def _bounds_of_entries(entries: Sequence[Declared]) -> str:
    distinct = {(entry["range"], entry["nullable"]) for entry in entries}
    texts = [f"{entry['range']}{' or None' if entry['nullable'] else ''}" for entry in entries]
    if len(distinct) > 1:
        return f"In {' and '.join(texts)}."
    return "Any numbers." if texts[0] in (UNBOUNDED, "[-inf, inf]") else f"Each in {texts[0]}."


def _type(option: Declared, number: str) -> str:
    if option["name"] in _OWN_TYPES:
        plain = _OWN_TYPES[option["name"]]
    elif "choices" in option:
        plain = f"Literal[{', '.join(map(literal, option['choices']))}]"
    elif option["kind"] == "floats":
        plain = f"tuple[{', '.join(number + (' | None' if e['nullable'] else '') for e in option['entries'])}]"
    else:
        plain = {"float": number, "int": "int", "bool": "bool", "text": "str"}[option["kind"]]
    return f"{plain} | None" if option["nullable"] else plain
