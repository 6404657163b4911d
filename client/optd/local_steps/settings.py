"""The arguments of local steps, read and checked."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

from optd.local_steps.speeds import read_every
from optd.transport.encoding import MessageEncoding
from optd_wire.errors import InvalidRequest

OVERLAPPED_ALPHA = 0.5
"""The share of the local weights where answers are applied late, unless it is given."""


@dataclass(frozen=True, slots=True)
class Settings:
    """See the arguments of `optd.LocalSteps`."""

    every: int
    follows_speeds: bool
    fragments: int
    delay: int
    alpha: float
    encoding: str | None
    weight: float | None

    @classmethod
    def of(
        cls,
        every: Any,
        fragments: Any = 1,
        delay: Any = 0,
        alpha: Any = None,
        encoding: str | None = None,
        weight: Any = None,
    ) -> Self:
        """Reads arguments; raises `InvalidRequest` or `UnknownEncoding`."""
        most, follows_speeds = read_every(every)
        for name, number in (("fragments", fragments), ("delay", delay)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise InvalidRequest(problem=f"{name} must be a whole number, got {number!r}")
        if alpha is None:
            alpha = OVERLAPPED_ALPHA if delay else 0.0
        if not isinstance(alpha, Real) or not 0 <= float(alpha) < 1:
            problem = f"alpha, the share of the local weights, must be in [0, 1), got {alpha!r}"
            raise InvalidRequest(problem=problem)
        if weight is not None and (not isinstance(weight, Real) or not float(weight) > 0):
            raise InvalidRequest(problem=f"weight must be more than 0, got {weight!r}")
        if encoding is not None:
            MessageEncoding.of(encoding)
        return cls(
            most,
            follows_speeds,
            fragments,
            delay,
            float(alpha),
            encoding,
            None if weight is None else float(weight),
        )
