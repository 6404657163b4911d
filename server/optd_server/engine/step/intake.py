"""Prepares the numbers of a push for its round: unscales them, checks them for NaN and infinities, weights them.

With default options numbers pass through unchanged, at no cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optd_server.optim.finite import first_nonfinite
from optd_server.optim.job_options import MEAN, REJECT, SUM, ZERO
from optd_server.store.flat import Array
from optd_server.store.rows import Ids, RowPlace
from optd_wire.errors import InvalidRequest, NonfiniteGradient
from optd_wire.values import PushHeader

MAX_FRAGMENTS = 1024
"""Each fragment is remembered with its last versions."""

Locate = Callable[[int], tuple[str, int]]
"""Maps the index of one of the numbers to its parameter, and to its index there."""

LARGEST_SCALE = 2.0**126
"""The largest loss scale. Gradients are multiplied by its reciprocal, which must be a normal number in float32."""


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """The NaN and infinite entries of one push: their count, and the parameter of the first."""

    count: int
    parameter: str


def check_header(header: PushHeader) -> None:
    """Raise `InvalidRequest` if a number of a push is out of range, or a flush has a weight or a loss scale."""
    if header.weight is not None and not 0 < header.weight < math.inf:
        raise InvalidRequest(problem=f"weight of a push must be in (0, inf), got {header.weight:g}")
    scale = header.loss_scale
    if scale is not None and not 1 / LARGEST_SCALE <= scale <= LARGEST_SCALE:
        raise InvalidRequest(problem=f"loss_scale of a push must be in [2**-126, 2**126], got {scale:g}")
    if header.fragment >= MAX_FRAGMENTS:
        raise InvalidRequest(problem=f"fragment of a push must be in [0, {MAX_FRAGMENTS}), got {header.fragment}")
    if header.flush:
        for name, value in (("weight", header.weight), ("loss_scale", scale), ("loss", header.loss)):
            if value is not None:
                raise InvalidRequest(problem=f"a flush brings no gradient, and so takes no {name}, got {value:g}")


def weight_of(header: PushHeader) -> float:
    """Return the weight of a push's gradients in a mean."""
    return 1.0 if header.weight is None else header.weight


def loss_of(headers: Sequence[PushHeader], reduction: str = MEAN) -> float:
    """Return the weighted mean or sum of the pushes' unscaled losses; 0 if no push has a loss."""
    if all([header.loss is None for header in headers]):  # noqa: C419 - a list is faster here
        return 0.0
    shares = [(weight_of(header), (header.loss or 0.0) / (header.loss_scale or 1.0)) for header in headers]
    if reduction == SUM or not shares:
        return sum(weight * loss for weight, loss in shares)
    return shares[0][1] if len(shares) == 1 else sum(w * loss for w, loss in shares) / sum(w for w, _ in shares)


class Intake:
    """Prepares the numbers of one push.

    `weight` is the factor that gradients are multiplied by, and `share` the factor of values (see `step.values`).
    `nonfinite` is the job's option of that name.
    """

    def __init__(self, header: PushHeader, nonfinite: str, weight: float = 1.0, share: float = 1.0) -> None:
        self._nonfinite = nonfinite
        self._weight = weight
        self._share = share
        scale = 1.0 if header.loss_scale is None else header.loss_scale
        # torch's GradScaler also multiplies by the reciprocal, which it computes in float64 and rounds to float32.
        self._reciprocal = float(np.float32(1 / scale)) if scale != 1 else 1.0
        self._count = 0
        self._first = ""
        self.plain = nonfinite == REJECT and self._weight == self._share == self._reciprocal == 1
        """Whether numbers are used unchanged, and refused if one is not finite."""

    @property
    def found(self) -> Nonfinite | None:
        """The entries that were not finite, so far."""
        return Nonfinite(self._count, self._first) if self._count else None

    def take(self, values: Array, locate: Locate, *, are_gradients: bool = True) -> None:
        """Prepare numbers in place; raise `NonfiniteGradient` if one is not finite and the option says to refuse."""
        weight = self._weight if are_gradients else self._share
        # Unscaling may overflow, which the check then finds. Weighting may overflow too, as it does in torch.
        with np.errstate(all="ignore"):
            if self._reciprocal != 1 and are_gradients:
                np.multiply(values, values.dtype.type(self._reciprocal), out=values)
            first = first_nonfinite(values)
            if first is not None:
                self._meet(values, first, locate, are_gradients)
            if weight != 1:
                np.multiply(values, values.dtype.type(weight), out=values)

    def accept(self, place: RowPlace, ids: Ids, values: Array) -> None:
        """Do the same as `take`, for rows of a parameter."""
        self.take(values.reshape(-1), lambda number: (place.name, place.element(ids, number)))

    def _meet(self, values: Array, first: int, locate: Locate, are_gradients: bool) -> None:
        parameter, index = locate(first)
        # A gradient of zero moves nothing, but a value of zero would replace the weight.
        if self._nonfinite == REJECT or (self._nonfinite == ZERO and not are_gradients):
            raise NonfiniteGradient(parameter=parameter, value=values[first], index=index)
        wrong = ~np.isfinite(values)
        self._first = self._first or parameter
        self._count += int(np.count_nonzero(wrong))
        if self._nonfinite == ZERO:
            values[wrong] = 0
