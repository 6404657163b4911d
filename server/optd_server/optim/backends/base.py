"""The interface of a backend, and the work that it gets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Algorithm, Elementwise, Vector
from optd_server.optim.reduce import Contribution, Reduction
from optd_server.optim.runs import Runs
from optd_server.optim.shared_coefficients import CoefficientTable


@dataclass(slots=True)  # not frozen, which would take longer to make: there is one in every step
class Work:
    """One step on one segment, checked and sorted. All vectors are contiguous and share no memory.

    `weights` and `out` have one dtype. `gradient` and all state have the same one, or float32 if weights are `narrow`:
    these are widened, and rounded again, block by block.
    """

    algorithm: Elementwise
    runs: Runs
    """Where the elements of each kind lie; kinds are those of `table`."""
    table: CoefficientTable
    weights: Vector
    """Read only."""
    gradient: Vector
    """Read only. The elements of absent parameters are not used."""
    out: Vector
    """The new weights; the backend writes every element."""
    state: Mapping[str, Vector]
    """All fields that some element needs, updated in place; there may be others."""

    @property
    def narrow(self) -> bool:
        """Whether weights are narrower than the arithmetic on them."""
        return self.out.dtype != self.gradient.dtype


class Backend(ABC):
    """Arithmetic on flat arrays. Safe to call from several threads; the heavy part runs without the GIL.

    `threads` is how many threads share a call, the caller's included; every call blocks until it is done. Arrays are
    1-d. The bits of results depend neither on `threads` nor on the backend, except for the payload of a NaN.
    """

    name: str
    """Its name and version, for people: ``numba 0.61.2``."""
    reason: str = ""
    """Why a preferred backend was not chosen: a line, or empty."""

    def describe(self, threads: int) -> str:
        """Return a line for people: its name, its number of threads, and why no other was chosen."""
        known = f"{self.name}, {threads} thread{'s' if threads != 1 else ''}"
        return f"{known} ({self.reason})" if self.reason else known

    @abstractmethod
    def prepare(self, algorithm: Algorithm, dtype: npt.DTypeLike) -> None:
        """Prepare everything that steps of an algorithm on data of a dtype need; may take seconds.

        Otherwise the first calls take that much longer.
        """

    @abstractmethod
    def step(self, work: Work, threads: int) -> None:
        """Take one step, which `step.apply` has checked and sorted."""

    @abstractmethod
    def first_nonfinite(self, array: npt.NDArray[np.floating[Any]], threads: int = 1) -> int | None:
        """Return the index of the first NaN or infinity, or None."""

    @abstractmethod
    def reduce_mean(
        self, out: Vector, contributions: Sequence[Contribution], sizes: npt.NDArray[np.int64], threads: int = 1
    ) -> Reduction:
        """Write the mean of contributions to `out`: see `reduce.reduce_mean`."""

    @abstractmethod
    def accumulate(self, target: Vector, values: Vector, *, add: bool) -> bool:
        """Set `target` to `values`, or add them to it; return whether the result is finite.

        Args:
            target: Contiguous. Shares no memory with `values`.
            values: Of the same shape and dtype. Need not be aligned, because data in a message is not.
            add: Whether to add.
        """

    @abstractmethod
    def scale(self, target: Vector, factor: float, threads: int = 1) -> None:
        """Multiply a contiguous array in place by a factor, which is first rounded to the array's dtype."""

    @abstractmethod
    def copy(self, out: Vector, source: Vector, threads: int = 1) -> None:
        """Copy `source` to `out`, of the same shape and dtype; they share no memory."""
