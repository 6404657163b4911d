"""Which options of a class of torch a server's algorithm has, too, and which values it can only refuse."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optd.options.mirror import as_numpy
from optd_wire.errors import InvalidOption, UnknownOption
from optd_wire.values import OptionValue

Fixed = Mapping[str, tuple[bool, str]]
"""Options of which a server has one value: the value, and why."""

IMPLEMENTATION = ("foreach", "fused")
"""Options that say how torch computes, not what: they change no result, and the server does not hear of them."""

UNSERVED: Fixed = {
    "differentiable": (False, "autograd does not reach into a server"),
    "capturable": (False, "no graph can capture a step on a server"),
}
"""Options that would have the step do what it cannot do on a server."""


def as_torch(value: OptionValue) -> Any:
    """An option's value as torch's classes have it: a number of float32 is a tensor, with which torch computes so."""
    return as_numpy(value, lambda number: torch.tensor(number, dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class OptionRules:
    """The options of one class; `defaults` are those that torch's class has resolved."""

    algorithm: str
    fixed: Fixed

    def served(self, defaults: Mapping[str, Any]) -> list[str]:
        """Those that the server's algorithm has, too."""
        return [name for name in defaults if name not in IMPLEMENTATION and name not in self.fixed]

    def check_fixed(self, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Raises `InvalidOption` where a group asks for what no server can do.

        Of an option that torch's class does not have, torch takes no notice either. None is as good as False.
        """
        for name, (value, why) in self.fixed.items():
            given = options.get(name, value)
            if name in defaults and bool(given) != value:
                raise InvalidOption(algorithm=self.algorithm, option=name, bound=f"{value} ({why})", value=given)

    def check_spelling(self, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Torch lets a group have any entries, and schedulers use that; a slip of the pen it would lose in silence."""
        for name in options:
            close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.85)
            if close and name not in defaults:
                names = ", ".join(defaults)
                advice = f"did you mean {close[0]!r}? The"
                raise UnknownOption(algorithm=self.algorithm, option=name, advice=advice, options=names)
