"""How the messages of a session carry numbers."""

from dataclasses import dataclass

from optd_wire.encodings.base import Encoding
from optd_wire.encodings.bfloat16 import BFloat16
from optd_wire.encodings.registry import encoding_named
from optd_wire.encodings.topk import TopK
from optd_wire.errors import InvalidRequest

STOCHASTIC = "stochastic"
"""What comes after bfloat16: to round at random."""


@dataclass(frozen=True, slots=True)
class MessageEncoding:
    """The encodings of gradients (None: unchanged) and of weights (by name; empty: unchanged)."""

    name: str
    gradients: Encoding | None
    weights: str
    stochastic: bool = False
    """Whether gradients are rounded at random, so that they are right in the mean."""

    @property
    def exact(self) -> bool:
        """Whether numbers arrive as they are."""
        return self.gradients is None

    @classmethod
    def of(cls, name: str) -> "MessageEncoding":
        """Reads a name as `connect` takes it; raises `UnknownEncoding`, or `InvalidRequest` for a bad fraction.

        Weights travel in the same encoding if it can carry them.
        """
        if not isinstance(name, str):
            raise InvalidRequest(problem=f"an encoding must be given by name, as 'bfloat16', got {name!r}")
        base, colon, fraction = name.partition(":")
        encoding = encoding_named(base)
        if isinstance(encoding, BFloat16) and fraction == STOCHASTIC:
            return cls(name, encoding, base, stochastic=True)
        if colon:
            if not isinstance(encoding, TopK):
                problem = f"encoding {base} takes no fraction, got {name!r}; only topk does, and bfloat16 'stochastic'"
                raise InvalidRequest(problem=problem)
            encoding = TopK(_fraction(name, fraction))
        if not encoding.converts:
            return cls(name, None, "")
        return cls(name, encoding, base if encoding.carries_weights else "")


def _fraction(name: str, text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise InvalidRequest(problem=f"topk:FRACTION must have a fraction in (0, 1], got {name!r}")
    return fraction
