"""What is said of one push as a whole, besides its gradients."""

from dataclasses import dataclass
from typing import Any

from optd_wire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class PushSettings:
    """What gradients count for in a mean, and what they are to be divided by; None: 1.

    And the loss, for an algorithm that asks for it, and whether the two are the first of a step. `norms` asks for the
    norms of the step; `flush` asks for the step of what has been added up, and brings no gradient.
    """

    weight: float | None = None
    loss_scale: float | None = None
    loss: float | None = None
    begins: bool = False
    norms: bool = False
    flush: bool = False

    @classmethod
    def of(
        cls, weight: Any, loss_scale: Any, loss: Any = None, *, begins: bool = False, norms: bool = False
    ) -> "PushSettings":
        """From what a caller gave: numbers, or arrays and tensors of one element; raises `InvalidRequest`."""
        given = _number("weight", weight), _number("loss_scale", loss_scale), _number("loss", loss)
        return cls(*given, begins, norms)


def _number(name: str, value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several elements
        raise InvalidRequest(problem=f"{name} must be a number, got {str(value)[:60]!r}") from None


PLAIN_PUSH = PushSettings()
