"""What is said of the gradients of one push as a whole."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Terms:
    """What gradients count for in a mean, and what they are to be divided by; None: 1.

    And the loss, for an algorithm that asks for it, and whether the two are the first of a step.
    """

    weight: float | None = None
    loss_scale: float | None = None
    loss: float | None = None
    begins: bool = False

    @classmethod
    def of(cls, weight: Any, loss_scale: Any, loss: Any = None, *, begins: bool = False) -> "Terms":
        """From what a caller gave: numbers, or arrays and tensors of one element."""
        return cls(
            None if weight is None else float(weight),
            None if loss_scale is None else float(loss_scale),
            None if loss is None else float(loss),
            begins,
        )


AS_THEY_ARE = Terms()
