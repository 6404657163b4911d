"""What an algorithm declares, and what its functions get.

An algorithm is a plain value: options, state fields, and pure functions. There are three kinds. Most are `Elementwise`:
each new weight follows from what belongs to that same element, so `step.apply` and the backends may cut a segment into
blocks as they like. `Parameterwise` ones look at a parameter as a whole, in its shape. `Iterative` ones look at all
parameters as one vector, and ask for the gradient at several places before their step is done. None knows groups or
layouts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim.option import Constraint, Option, Options
from optd_server.optim.row_support import RowSupport

Vector: TypeAlias = npt.NDArray[np.floating[Any]]
"""Elements of one dtype, one dimension."""
Number: TypeAlias = float | np.floating[Any] | Vector
"""A coefficient that may differ within a block: one for all, or one for each of its elements."""
Array: TypeAlias = npt.NDArray[np.floating[Any]]
"""Of any shape."""


Shape: TypeAlias = tuple[int, ...]


def always(_: Options) -> bool:
    """Hold under any options."""
    return True


def own(shape: Shape) -> Shape:
    """Return the shape of the parameter itself."""
    return shape


def scalar(_: Shape) -> Shape:
    """Return the shape of one number."""
    return ()


@dataclass(frozen=True)
class StateField:
    """What an algorithm remembers of each parameter, under torch's name for it: an array, or one number."""

    name: str
    when: Callable[[Options], bool] = always
    """Which options need it. It is allocated once they do, and kept from then on."""
    shape: Callable[[Shape], Shape | None] = own
    """Its shape, by that of the parameter; None where such a parameter has no such state."""
    dtype: str | None = None
    """Its dtype; None is that of the arithmetic: the weights' own, or float32 for weights of 16 bits."""
    initial: Callable[[Options], float] | None = None
    """What every element is before a parameter's first step; None is 0."""
    seeded: bool = False
    """Whether the first update of a parameter sets the field by itself, not from zeros: `Block.fresh`."""
    of_weights: bool = False
    """Whether it begins as what the weights are before a parameter's first step with it, and follows them."""
    narrow_only: bool = False
    """Whether only parameters have it whose dtype is narrower than that of the arithmetic on them."""
    series: Callable[[Options], int] | None = None
    """At most how many of it there are, called ``name.0``, ``name.1``, …; None: it is one, and called by its name."""

    def members(self, options: Options) -> tuple["StateField", ...]:
        """Return the fields that it stands for: itself, or those of its series."""
        if self.series is None:
            return (self,)
        count = self.series(options)
        return tuple(replace(self, name=f"{self.name}.{number}", series=None) for number in range(count))

    @property
    def elementwise(self) -> bool:
        """Whether it has a number for each weight, of the arithmetic's dtype, and so is laid out as they are."""
        return self.shape is own and self.dtype is None


MASTER_WEIGHTS = StateField(
    "master_weights", lambda options: bool(options.get("master_weights")), of_weights=True, narrow_only=True
)
"""What every algorithm remembers where a group asks for it: see `masters`."""

SLOW_WEIGHTS = StateField("slow_weights", lambda options: options.get("lookahead_steps") is not None, of_weights=True)
"""What every algorithm remembers where a group looks ahead: see `lookahead`."""


def scalar_field(name: str, initial: Callable[[Options], float]) -> StateField:
    """Declare a number for each parameter, of float32 whatever the weights are, as torch keeps such numbers."""
    return StateField(name, shape=scalar, dtype="float32", initial=initial)


@dataclass(frozen=True, slots=True)
class Block:
    """Elements that one call of a kernel updates: all arrays are 1-d, of one length and one dtype.

    The driver owns all of them; a kernel keeps none. No two of them share memory.
    """

    weights: Vector
    """The current weights, in the dtype of the arithmetic. Read only."""
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


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter that one call of `Parameterwise.update` updates: all arrays have its shape, but for the state.

    No two of them share memory; the function keeps none.
    """

    weights: Array
    """The current weights. Read only."""
    gradient: Array
    """Read only."""
    out: Array
    """The new weights, uninitialised; every element is to be written."""
    state: Mapping[str, Array]
    """The fields that the options need and that a parameter of this shape has, in their shapes; updated in place."""
    step: int
    """Which step of the parameter it is, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An optimizer: what it is called, what it can be told and what it remembers. One of the three kinds below."""

    name: str
    """As it is asked for: ``adam``."""
    title: str
    """As torch spells its class: ``Adam``."""
    doc: str
    """One line."""
    options: tuple[Option, ...]
    constraints: tuple[Constraint, ...] = ()
    state: tuple[StateField, ...] = ()
    shape_problem: Callable[[Shape], str | None] | None = None
    """What is wrong with parameters of a shape, as the end of "parameter 'w' must …"; None: nothing, with any."""
    takes_values: bool = False
    """Whether values for the weights are pushed, not gradients, so that clipping and lookahead must not apply."""
    rows: RowSupport | None = None
    """How it takes gradients of some rows of a parameter; None: not at all. For elementwise ones."""

    @cached_property
    def all_state(self) -> tuple[StateField, ...]:
        """The fields that it declares, and those that every algorithm has."""
        return (*self.state, MASTER_WEIGHTS, SLOW_WEIGHTS)

    def state_of(self, options: Options) -> tuple[StateField, ...]:
        """Return all state fields, series as what they consist of under these resolved options."""
        return tuple(member for field in self.all_state for member in field.members(options))

    def fields(self, options: Options) -> tuple[StateField, ...]:
        """Return the state fields that resolved options need."""
        return tuple(field for field in self.state_of(options) if field.when(options))


MOST_FUSED = 6
"""How many fields that are not scalars an algorithm with a `fused` may have."""


@dataclass(frozen=True, kw_only=True)
class Elementwise(Algorithm):
    """An algorithm that needs of a parameter nothing but its elements, one by one, and its step count.

    `coefficients`, or `advance` where there are scalars to keep, turns the options and a step count into the numbers
    of one step, in Python floats as torch does; `update` applies them to a block of elements, in numpy; `fused` does
    the same element by element, for a compiler. Fields are elementwise or scalars.
    """

    coefficients: Callable[[Options, int], tuple[Any, ...]] | None = None
    """The numbers of one step, as a NamedTuple, from resolved options and the step count (1 at the first
    step).

    Its floats reach the kernel in the dtype of the data. One that is annotated `Number` may be an array of the
    block's length, because a block may hold parameters of several step counts and groups. One that is annotated
    `float`, and whatever is not a float, is the same for a whole block: annotate so what a formula branches on, and
    where the step count decides between formulas, let a bool say so.
    """
    advance: Callable[[Options, int, tuple[float, ...]], tuple[tuple[Any, ...], tuple[float, ...]]] | None = None
    """In the place of `coefficients`, for an algorithm that keeps scalars: from these as they are before the step, in
    the order of their declaration, the numbers of the step and the scalars after it."""
    update: Callable[[Any, Block], None]
    """Apply one step to a block, elementwise: the same bits however a segment is cut into blocks."""
    scratch: int = 0
    """How many scratch arrays `update` needs."""
    fused: Callable[..., None] | None = None
    """`update` for a tile of some hundred elements, as numba can compile it; None leaves all work to `update`.

    Called as ``fused(c, fresh, weights, gradient, out, state)``. `c` is a record with the names and numbers of
    the coefficients, its floats in the dtype of the data. `state` holds an array for each declared field that is not a
    scalar, in declared order; one that the options do not need may be empty, so a bool among the coefficients has to
    say whether to touch it; there are `MOST_FUSED` at most. All else is as in `Block`. It must give the bits of
    `update`: the same operations in the same order, and no constant that lifts float32 to float64
    (``out.dtype.type(1) - x``, not ``1.0 - x``). Loops that run over ``range(out.size)`` with nothing but elementwise
    work become vector code; several short ones do no harm, a tile stays in the fastest cache.
    """

    def __post_init__(self) -> None:
        if (self.coefficients is None) == (self.advance is None) or (self.advance is None) != (not self.scalars):
            raise ValueError(f"{self.name} needs coefficients, or scalars and advance")
        strange = [field.name for field in self.state if not field.elementwise and field.shape is not scalar]
        if strange:
            raise ValueError(f"{self.name}.{strange[0]} must be elementwise or a scalar")
        if self.fused is not None and len(self.arrays) > MOST_FUSED:
            bound = f"at most {MOST_FUSED} fields that are not scalars, got {len(self.arrays)}"
            raise ValueError(f"{self.name} must have {bound}, or no fused")

    @cached_property
    def arrays(self) -> tuple[StateField, ...]:
        """The fields that have a number for each weight."""
        return tuple(field for field in self.state if field.shape is not scalar)

    @cached_property
    def array_names(self) -> tuple[str, ...]:
        """The names of these fields."""
        return tuple(field.name for field in self.arrays)

    @cached_property
    def scalars(self) -> tuple[StateField, ...]:
        """The fields that are one number a parameter."""
        return tuple(field for field in self.state if field.shape is scalar)

    def numbers(
        self, options: Options, step: int, scalars: tuple[float, ...]
    ) -> tuple[tuple[Any, ...], tuple[float, ...]]:
        """Return the coefficients of a step, and the scalars after it, as Python's numbers."""
        if self.advance is not None:
            coefficients, scalars = self.advance(options, step, scalars)
            return _plain(coefficients), tuple(map(float, scalars))
        assert self.coefficients is not None
        return _plain(self.coefficients(options, step)), ()

    def initial_scalars(self, options: Options) -> tuple[float, ...]:
        """Return the scalars before a parameter's first step."""
        return tuple(0.0 if field.initial is None else field.initial(options) for field in self.scalars)


def _plain(numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return coefficients without numbers of numpy, which those are that were computed in float32."""
    for each in numbers:
        if isinstance(each, np.generic):
            break
    else:
        return numbers
    made = [each.item() if isinstance(each, np.generic) else each for each in numbers]
    return type(numbers)(*made) if hasattr(numbers, "_fields") else tuple(made)


@dataclass(frozen=True, kw_only=True)
class Parameterwise(Algorithm):
    """An algorithm that looks at each parameter as a whole, in its shape. It has one backend: numpy."""

    update: Callable[[Options, Parameter], None]
    """Apply one step to one parameter that has elements, under resolved options. Called from several threads."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a client has found at the weights that it was asked about."""

    loss: float
    gradient: Vector
    """Of all parameters, one after the other, shape (N,); zeros where one has none. Whoever gets it may keep it."""
    is_finite: bool = True
    """Whether the gradient is. If not, entries that are no numbers are zeros, and the loss is infinite."""
    weights: Vector | None = None
    """The weights of this evaluation, shape (N,), if somebody wrote them meanwhile; else None."""


Remembered: TypeAlias = Mapping[str, Any]
"""What an `Iterative` algorithm remembers from one step to the next, by the names of its state fields: a vector of
shape (N,), a float, or for a series a list of vectors. A name that it has never set is absent."""


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What an evaluation has led to: a question about further weights, or the end of the step."""

    weights: Vector
    """The weights to evaluate next, or those after the step. Shape (N,); nobody changes them."""
    search: Any | None
    """The search, which waits for that evaluation; None at the end of the step."""
    remembered: Remembered | None = None
    """At the end of the step, what is to be remembered; names that are left out stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Iterative(Algorithm):
    """An algorithm that takes all parameters as one vector, and may ask about several weights for one step.

    Its job has one group, and all parameters have one dtype. Each evaluation is a push, and a version of the job.
    Fields are elementwise, series of such fields, or scalars; as in torch, only the first parameter has scalars.

    A step under way is a value of the class `search`, which can be stored and restored between any two evaluations.
    """

    incomplete: Callable[[Collection[str]], str | None] = lambda _: None
    """What is wrong with the state fields that someone restores, by their names, as the end of "state must …"."""
    working_vectors: Callable[[Options], int]
    """How many vectors of shape (N,) a step that is under way may hold, beside its state."""
    search: type
    """What a step that is under way consists of: a frozen dataclass.

    Its fields are numpy vectors and scalars, Python numbers, bools, strings, None, further such dataclasses, and lists
    of these. A field that holds dataclasses is annotated with their classes, so that `plain.rebuild` finds them. The
    options that a step begins with are part of it, and no vector in it is ever changed in place.
    """
    begin: Callable[[Options, Remembered, Vector, Evaluation], Progress]
    """Begin a step, from resolved options, what is remembered, weights of shape (N,), and their evaluation.

    It may keep all vectors that it gets, and must change none.
    """
    advance: Callable[[Any, Evaluation], Progress]
    """Continue a search with what a client has found at the weights that it asked about. Leaves the search as it is."""

    def __post_init__(self) -> None:
        for field in self.state:
            if not field.elementwise and (field.shape is not scalar or field.series is not None):
                raise ValueError(f"{self.name}.{field.name} must be elementwise or a scalar")
        if not is_dataclass(self.search):
            raise ValueError(f"{self.name}.search must be a dataclass, got {self.search!r}")
