"""The options of a class of torch: which the server's algorithm has too, and which values it must refuse."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optd.options.mirror import as_numpy
from optd_wire.errors import InvalidOption, UnknownOption
from optd_wire.values import OptionValue

Fixed = Mapping[str, tuple[bool, str]]
"""Options for which the server supports one value: that value, and the reason."""

IMPLEMENTATION = ("foreach", "fused")
"""Options that select an implementation in torch. They change no result and are not sent to the server."""

UNSERVED: Fixed = {
    "differentiable": (False, "autograd does not reach into a server"),
    "capturable": (False, "no graph can capture a step on a server"),
}
"""Options that no step on a server can support."""


def as_torch(value: OptionValue) -> Any:
    """An option's value in torch's types: a number of float32 is a tensor, so that torch computes in float32."""
    return as_numpy(value, lambda number: torch.tensor(number, dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class OptionRules:
    """The options of one class. `defaults` in its methods are those that torch's class has resolved."""

    algorithm: str
    fixed: Fixed

    def served(self, defaults: Iterable[str]) -> list[str]:
        """The options that the server's algorithm has too."""
        return [name for name in defaults if name not in IMPLEMENTATION and name not in self.fixed]

    def check_fixed(self, options: Mapping[str, Any], defaults: Collection[str]) -> None:
        """Raises `InvalidOption` if a group asks for what no server can do.

        Ignores options that torch's class does not have, as torch does. None counts as False.
        """
        for name, (value, why) in self.fixed.items():
            given = options.get(name, value)
            if name in defaults and bool(given) != value:
                raise InvalidOption(algorithm=self.algorithm, option=name, bound=f"{value} ({why})", value=given)

    def check_spelling(self, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Raises `UnknownOption` for a misspelt option, which torch would ignore: groups may have any entries."""
        for name in options:
            close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.85)
            if close and name not in defaults:
                names = ", ".join(defaults)
                advice = f"did you mean {close[0]!r}? The"
                raise UnknownOption(algorithm=self.algorithm, option=name, advice=advice, options=names)
