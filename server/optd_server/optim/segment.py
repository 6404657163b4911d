"""The state of one flat segment: what an optimizer remembers of the parameters that lie in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Algorithm, StateField, Vector
from optd_server.optim.option import Options


class SegmentState:
    """State of parameters of one dtype that lie one after the other, without gaps, in a flat buffer.

    P is their number, N that of their elements. The layout never changes; the rest is what `step.apply`
    updates in place, and what a checkpoint has to keep. Arrays that are given are owned from then on, not
    copied.
    """

    sizes: npt.NDArray[np.int64]
    """Elements of each parameter, shape (P,). A 0-d parameter has 1, an empty one 0."""
    offsets: npt.NDArray[np.int64]
    """Where each parameter starts, shape (P,)."""
    count: int
    """N."""
    dtype: np.dtype[Any]
    """Of the weights, and so of every state array."""
    steps: npt.NDArray[np.int64]
    """How many steps each parameter took part in, shape (P,)."""
    state: dict[str, Vector]
    """State arrays by torch's names, shape (N,) each; only those that options have needed so far."""
    started: dict[str, npt.NDArray[np.bool_]]
    """For each state array, which parameters have it, shape (P,).

    torch gives a parameter its state at its first gradient; until then the array holds zeros for it.
    """

    def __init__(
        self,
        sizes: Sequence[int] | npt.NDArray[np.int64],
        dtype: npt.DTypeLike,
        *,
        steps: npt.NDArray[np.int64] | None = None,
        state: Mapping[str, Vector] | None = None,
        started: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.offsets = np.cumsum(self.sizes) - self.sizes
        self.count = int(self.sizes.sum())
        self.dtype = np.dtype(dtype)
        self.steps = np.zeros(len(self.sizes), np.int64) if steps is None else steps
        self.state = dict(state or {})
        self.started = dict(started or {})

    def ensure(self, algorithm: Algorithm, options: Options) -> tuple[StateField, ...]:
        """Allocate the state that resolved options need and that is missing; return the fields they need.

        State that they do not need is kept: momentum that is turned off and on again goes on where it was.
        """
        fields = algorithm.fields(options)
        for field in fields:
            if field.name not in self.state:
                self.state[field.name] = np.zeros(self.count, self.dtype)
                self.started[field.name] = np.zeros(len(self.sizes), np.bool_)
        return fields
