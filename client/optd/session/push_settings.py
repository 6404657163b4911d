"""The settings of one push, besides its gradients."""

from dataclasses import dataclass
from typing import Any

from optd_wire.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class PushSettings:
    """See the fields."""

    weight: float | None = None
    """The weight of the gradients in a mean with others; None: 1."""
    loss_scale: float | None = None
    """What the server divides the gradients by; None: 1."""
    loss: float | None = None
    """The loss whose gradients these are, for an algorithm that needs it."""
    begins: bool = False
    """Whether loss and gradients are the first of a step that takes several."""
    norms: bool = False
    """Whether the result is to have the norms of the step."""
    flush: bool = False
    """Whether the push brings no gradient and asks for the step of what has been accumulated."""
    fragment: int = 0
    """1 + the index of the fragment of the model that the push holds; 0: the whole model."""
    base_version: int | None = None
    """The version of the weights that the gradient belongs to; None: that of the weights that were last pulled."""
    speed: float = 0.0
    """How many steps of its own the worker computes in a second; 0: unknown."""

    @classmethod
    def of(
        cls, weight: Any, loss_scale: Any, loss: Any = None, *, begins: bool = False, norms: bool = False
    ) -> "PushSettings":
        """Reads numbers, or arrays and tensors of one element; raises `InvalidRequest` for anything else."""
        given = _number("weight", weight), _number("loss_scale", loss_scale), _number("loss", loss)
        return cls(*given, begins, norms)


def _number(name: str, value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements raises RuntimeError
        raise InvalidRequest(problem=f"{name} must be a number, got {str(value)[:60]!r}") from None


PLAIN_PUSH = PushSettings()
