"""How an algorithm takes a gradient that has only some rows of a parameter, with all others zero."""

from collections.abc import Callable
from dataclasses import dataclass

from optd_server.optim.option import Options


def never(_: Options) -> bool:
    """Hold under no options."""
    return False


@dataclass(frozen=True)
class RowSupport:
    """The declaration of an algorithm that takes such gradients.

    Under options for which `whole` does not hold, the algorithm must not need seeded fields.
    """

    whole: Callable[[Options], bool] = never
    """Whether a step under some options changes rows without a gradient, too: it then takes the whole gradient, zeros
    included.

    Under all other options, rows without a gradient keep weights and state.
    """
    zero: tuple[str, ...] = ()
    """Options that must be 0 for such a gradient, as in torch."""
    only: bool = False
    """Whether the algorithm takes no other gradients."""
