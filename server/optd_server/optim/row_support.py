"""How an algorithm takes a gradient of which only some rows of a parameter are given, all others being zero."""

from collections.abc import Callable
from dataclasses import dataclass

from optd_server.optim.option import Options


def never(_: Options) -> bool:
    """Hold under no options."""
    return False


@dataclass(frozen=True)
class RowSupport:
    """What an algorithm declares that takes such gradients. It needs no seeded fields where `whole` is false."""

    whole: Callable[[Options], bool] = never
    """Which options change rows without a gradient, too: a step is then that of the whole gradient, zeros included.

    Under all others rows without a gradient keep weights and state.
    """
    zero: tuple[str, ...] = ()
    """Options that must be 0 for it, as torch has it."""
    only: bool = False
    """Whether it takes no other gradients."""
