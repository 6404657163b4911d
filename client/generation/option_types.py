"""The types of options that no algorithm declares: those of every group, and those of a job as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from generation.docstrings import attribute, docstring
from generation.modules import module
from generation.options import Argument, argument, literal

_EMA, _SWA = "ema_", "swa_"
_ASKED = {"ema_decay": 0.999, "swa_start": 0}
"""Defaults of `EMA` and `SWA`: who constructs one asks for the average, which no job keeps by default."""
_ABOUT_EMA = (
    'An exponential moving average of the weights, for `optd.connect(averages=...)`; `pull(weights="ema")` reads it.',
    "As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`, updated after every step.",
)
_ABOUT_SWA = (
    'The equal average of versions of the weights, for `optd.connect(averages=...)`; `pull(weights="swa")` reads it.',
    "As `torch.optim.swa_utils.AveragedModel`, updated after the steps that lead to the versions `start`, "
    "`start + every`, `start + 2 * every`, …",
)


def group_options_module(group_options: Sequence[Mapping[str, Any]]) -> str:
    """Return the module with the options of every group."""
    defaults = [f'    "{option["name"]}": {literal(option["default"])},' for option in group_options]
    body = [
        "GROUP_OPTIONS: dict[str, OptionValue] = {",
        *defaults,
        "}",
        '"""Their names, with the values that count for a group that does not have them."""',
        "",
        "",
        "class GroupOptionArguments(TypedDict, total=False):",
        '    """The same as arguments of an optimizer, for all groups that have no value of their own."""',
        "",
    ]
    for each in map(argument, group_options):
        body += [f"    {each.name}: {each.type}", attribute(each.doc)]
    return module("Options that every group has, whatever its algorithm.", "\n".join([*body, ""]))


def job_options_module(job_options: Sequence[Mapping[str, Any]]) -> str:
    """Return the module with the options of a job as a whole."""
    ema = [option for option in job_options if option["name"].startswith(_EMA)]
    swa = [option for option in job_options if option["name"].startswith(_SWA)]
    others = [option for option in job_options if option not in (*ema, *swa)]
    classes = [
        _gradients([argument(option) for option in others]),
        _average("EMA", _ABOUT_EMA, ema, _EMA),
        _average("SWA", _ABOUT_SWA, swa, _SWA),
        "Averages = EMA | SWA | Iterable[EMA | SWA]\n",
    ]
    about = "Options of a job as a whole, which count for whoever creates it: treatment of gradients, and averages."
    return module(about, "\n\n".join(classes))


def _gradients(arguments: Sequence[Argument]) -> str:
    summary = "How the server treats the gradients of a job before each step; for `optd.connect(gradients=...)`."
    lines = [
        "@dataclass(frozen=True, slots=True, kw_only=True)",
        "class Gradients:",
        docstring(summary, ["`Session.set_options` changes any of these while the job trains."], arguments),
        "",
        *map(_field, arguments),
        "",
        "    def options(self) -> dict[str, OptionValue]:",
        '        """The options that differ from the server\'s defaults."""',
        "        chosen = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}",
        "        return {name: value for name, (value, default) in chosen.items() if value != default}",
    ]
    return "\n".join([*lines, ""])


def _average(title: str, about: tuple[str, str], options: Sequence[Mapping[str, Any]], prefix: str) -> str:
    arguments = [argument(_asked(option, prefix)) for option in options]
    names = [f'"{option["name"]}": self.{option["name"].removeprefix(prefix)}' for option in options]
    lines = [
        "@dataclass(frozen=True, slots=True)",
        f"class {title}:",
        docstring(about[0], [about[1]], arguments),
        "",
        *map(_field, arguments),
        "",
        "    def options(self) -> dict[str, OptionValue]:",
        '        """The options of a job that keeps this average."""',
        f"        return {{{', '.join(names)}}}",
    ]
    return "\n".join([*lines, ""])


def _field(argument: Argument) -> str:
    return f"    {argument.line.removesuffix(',')}"


def _asked(option: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return an option of an average that is asked for: without the prefix, and never None."""
    name = option["name"]
    doc = option["doc"].removesuffix(" None: no such average.")
    default = _ASKED.get(name, option["default"])
    return {**option, "name": name.removeprefix(prefix), "default": default, "doc": doc, "nullable": False}
