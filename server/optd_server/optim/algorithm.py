"""What an algorithm declares, and what its kernel is given.

An algorithm is a plain value: options, state fields, and three functions. `coefficients` turns the options
and a step count into the numbers of one step, in Python floats as torch does; `update` applies them to a
block of elements, in numpy; `fused` does the same element by element, for a compiler. None knows parameters,
groups or layouts: `step.apply` and the backends cut a segment into blocks whose elements share coefficients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim.option import Option, Options, Rule

Vector: TypeAlias = npt.NDArray[np.floating[Any]]
"""Elements of one dtype, one dimension."""
Number: TypeAlias = float | np.floating[Any] | Vector
"""A coefficient that may differ within a block: one for all, or one for each of its elements."""


def always(_: Options) -> bool:
    """Hold under any options."""
    return True


@dataclass(frozen=True)
class StateField:
    """An array beside the weights, of their shape and dtype, under torch's name for it."""

    name: str
    when: Callable[[Options], bool] = always
    """Which options need it. It is allocated once they do, as zeros, and kept from then on."""
    seeded: bool = False
    """Whether the first update of a parameter sets the field by itself, not from zeros: `Block.fresh`."""


@dataclass(frozen=True, slots=True)
class Block:
    """Elements that one call of a kernel updates: all arrays are 1-d, of one length and one dtype.

    The driver owns all of them; a kernel keeps none. No two of them share memory.
    """

    weights: Vector
    """The current weights. Read only."""
    gradient: Vector
    """Read only."""
    out: Vector
    """The new weights, uninitialised. The kernel writes every element, and may use it as scratch before."""
    state: Mapping[str, Vector]
    """The fields that the options need, updated in place."""
    scratch: tuple[Vector, ...]
    """As many as the algorithm asked for, uninitialised."""
    fresh: bool
    """Whether the seeded fields of these elements have never been set."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An optimizer: what it is called, what it can be told, what it remembers and what it does."""

    name: str
    """As it is asked for: ``adam``."""
    title: str
    """As torch spells its class: ``Adam``."""
    doc: str
    """One line."""
    options: tuple[Option, ...]
    rules: tuple[Rule, ...] = ()
    state: tuple[StateField, ...] = ()
    coefficients: Callable[[Options, int], tuple[Any, ...]]
    """The numbers of one step, as a NamedTuple, from resolved options and the step count (1 at the first
    step).

    Its floats reach the kernel in the dtype of the data. One that is annotated `Number` may be an array of the
    block's length, because a block may hold parameters of several step counts and groups. One that is annotated
    `float`, and whatever is not a float, is the same for a whole block: annotate so what a formula branches on, and
    where the step count decides between formulas, let a bool say so.
    """
    update: Callable[[Any, Block], None]
    """Apply one step to a block, elementwise: the same bits however a segment is cut into blocks."""
    scratch: int = 0
    """How many scratch arrays `update` needs."""
    fused: Callable[..., None] | None = None
    """`update` for a tile of some hundred elements, as numba can compile it; None leaves all work to `update`.

    Called as ``fused(c, fresh, weights, gradient, out, state)``. `c` is a record with the names and numbers of
    the coefficients, its floats in the dtype of the data. `state` holds an array for each declared field, in
    declared order; one that the options do not need may be empty, so a bool among the coefficients has to say
    whether to touch it. All else is as in `Block`. It must give the bits of `update`: the same operations in the
    same order, and no constant that lifts float32 to float64 (``out.dtype.type(1) - x``, not ``1.0 - x``). Loops
    that run over ``range(out.size)`` with nothing but elementwise work become vector code; several short ones do
    no harm, a tile stays in the fastest cache.
    """

    def fields(self, options: Options) -> tuple[StateField, ...]:
        """Return the state fields that resolved options need."""
        return tuple(field for field in self.state if field.when(options))
