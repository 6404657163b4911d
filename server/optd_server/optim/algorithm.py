"""What an algorithm declares, and what its functions get.

An algorithm is a plain value: options, state fields, and pure functions. There are three kinds. Most are `Elementwise`:
each new weight follows from what belongs to that same element, so `step.apply` and the backends may cut a segment into
blocks as they like. `Parameterwise` ones look at a parameter as a whole, in its shape. `Iterative` ones look at all
parameters as one vector, and ask for the gradient at several places before their step ends. No algorithm knows groups
or layouts.
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
"""A coefficient that may differ within a block: one number for all elements, or one for each."""
Array: TypeAlias = npt.NDArray[np.floating[Any]]
"""Elements of one dtype, any shape."""


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
    """Something an algorithm remembers for each parameter, under torch's name: an array, or one number."""

    name: str
    when: Callable[[Options], bool] = always
    """Whether options need it. It is allocated as soon as they do, and kept from then on."""
    shape: Callable[[Shape], Shape | None] = own
    """Its shape for a parameter of some shape; None if such a parameter does not have it."""
    dtype: str | None = None
    """Its dtype. None is the dtype of the arithmetic: the weights' own, or float32 for weights of 16 bits."""
    initial: Callable[[Options], float] | None = None
    """The value of every element before a parameter's first step; None is 0."""
    seeded: bool = False
    """Whether a parameter's first update sets the field without reading it: see `Block.fresh`."""
    of_weights: bool = False
    """Whether it begins as a copy of the weights, before a parameter's first step with it, and follows them."""
    narrow_only: bool = False
    """Whether only parameters whose dtype is narrower than that of the arithmetic have it."""
    series: Callable[[Options], int] | None = None
    """The largest number of members, called ``name.0``, ``name.1``, …; None: it is one field, called ``name``."""

    def members(self, options: Options) -> tuple["StateField", ...]:
        """Return the field itself, or the members of its series."""
        if self.series is None:
            return (self,)
        count = self.series(options)
        return tuple(replace(self, name=f"{self.name}.{number}", series=None) for number in range(count))

    @property
    def elementwise(self) -> bool:
        """Whether it has a number for each weight, in the arithmetic's dtype, and so has the weights' layout."""
        return self.shape is own and self.dtype is None


MASTER_WEIGHTS = StateField(
    "master_weights", lambda options: bool(options.get("master_weights")), of_weights=True, narrow_only=True
)
"""The field that every algorithm has if a group asks for master weights: see `masters`."""

SLOW_WEIGHTS = StateField("slow_weights", lambda options: options.get("lookahead_steps") is not None, of_weights=True)
"""The field that every algorithm has if a group looks ahead: see `lookahead`."""


def scalar_field(name: str, initial: Callable[[Options], float]) -> StateField:
    """Declare one number for each parameter; as in torch it is float32, whatever dtype the weights have."""
    return StateField(name, shape=scalar, dtype="float32", initial=initial)


@dataclass(frozen=True, slots=True)
class Block:
    """Elements that one call of a kernel updates: all arrays are 1-d, of one length and one dtype.

    The driver owns the arrays; a kernel keeps none. No two arrays share memory.
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
    """A parameter that one call of `Parameterwise.update` updates: all arrays but those of the state have its shape.

    No two arrays share memory; the function keeps none.
    """

    weights: Array
    """The current weights. Read only."""
    gradient: Array
    """Read only."""
    out: Array
    """The new weights, uninitialised. The function writes every element."""
    state: Mapping[str, Array]
    """The fields that the options need and a parameter of this shape has, in their shapes; updated in place."""
    step: int
    """The parameter's step count, 1 at its first step."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An optimizer: its name, options and state. The three kinds below derive from it."""

    name: str
    """The name that clients ask for: ``adam``."""
    title: str
    """The name of its class in torch: ``Adam``."""
    doc: str
    """One line."""
    options: tuple[Option, ...]
    constraints: tuple[Constraint, ...] = ()
    state: tuple[StateField, ...] = ()
    shape_problem: Callable[[Shape], str | None] | None = None
    """What is wrong with a shape of parameters, as the end of "parameter 'w' must …". None: it takes every shape."""
    takes_values: bool = False
    """Whether values for the weights are pushed, not gradients, so that clipping and lookahead must not apply."""
    rows: RowSupport | None = None
    """How it takes gradients of some rows of a parameter. None: it refuses them. For elementwise algorithms."""

    @cached_property
    def all_state(self) -> tuple[StateField, ...]:
        """The fields that it declares, with those that every algorithm has."""
        return (*self.state, MASTER_WEIGHTS, SLOW_WEIGHTS)

    def state_of(self, options: Options) -> tuple[StateField, ...]:
        """Return all state fields, with each series as its members under these resolved options."""
        return tuple(member for field in self.all_state for member in field.members(options))

    def fields(self, options: Options) -> tuple[StateField, ...]:
        """Return the state fields that resolved options need."""
        return tuple(field for field in self.state_of(options) if field.when(options))


MOST_FUSED = 6
"""The largest number of fields, without scalars, of an algorithm that has a `fused`."""


@dataclass(frozen=True, kw_only=True)
class Elementwise(Algorithm):
    """An algorithm that needs nothing of a parameter but its elements, one by one, and its step count.

    `coefficients`, or `advance` for an algorithm with scalars, turns the options and a step count into the numbers of
    one step, in Python floats as torch does. `update` applies them to a block of elements, in numpy. `fused` does the
    same element by element, for a compiler. Fields are elementwise or scalars.
    """

    coefficients: Callable[[Options, int], tuple[Any, ...]] | None = None
    """Compute the numbers of one step, a NamedTuple, from resolved options and the step count (1 at the first step).

    Its floats reach the kernel in the dtype of the data. A number annotated `Number` may be an array of the block's
    length, because a block may hold parameters of several step counts and groups. A number annotated `float`, and
    everything that is not a float, is the same for a whole block. Annotate a number as `float` if a formula branches
    on it; if the step count decides between formulas, let a bool say which.
    """
    advance: Callable[[Options, int, tuple[float, ...]], tuple[tuple[Any, ...], tuple[float, ...]]] | None = None
    """Replaces `coefficients` in an algorithm with scalars. Gets the scalars before the step, too, in declared order,
    and returns the numbers of the step and the scalars after it."""
    update: Callable[[Any, Block], None]
    """Apply one step to a block, elementwise: the same bits however a segment is cut into blocks."""
    scratch: int = 0
    """How many scratch arrays `update` needs."""
    fused: Callable[..., None] | None = None
    """`update` for a tile of some hundred elements, in code that numba can compile; None leaves all work to `update`.

    Called as ``fused(c, fresh, weights, gradient, out, state)``. `c` is a record with the names and numbers of
    the coefficients, its floats in the dtype of the data. `state` holds an array for each declared field that is not a
    scalar, in declared order, at most `MOST_FUSED` of them. An array that the options do not need may be empty, so a
    bool among the coefficients has to say whether to touch it. All else is as in `Block`. It must give the bits of
    `update`: the same operations in the same order, and no constant that lifts float32 to float64
    (``out.dtype.type(1) - x``, not ``1.0 - x``). Loops that run over ``range(out.size)`` with nothing but elementwise
    work become vector code. Several short loops do no harm, because a tile stays in the fastest cache.
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
        """The fields that are one number for each parameter."""
        return tuple(field for field in self.state if field.shape is scalar)

    def numbers(
        self, options: Options, step: int, scalars: tuple[float, ...]
    ) -> tuple[tuple[Any, ...], tuple[float, ...]]:
        """Return the coefficients of a step, and the scalars after it, as Python numbers."""
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
    """Apply one step to one parameter that is not empty, under resolved options. Called from several threads."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a client has found at the weights that it was asked about."""

    loss: float
    gradient: Vector
    """The gradients of all parameters, one after the other, shape (N,); zeros for a parameter that has none. The
    receiver may keep it."""
    is_finite: bool = True
    """Whether the gradient is finite. If not, its NaN and infinite entries are zeros, and the loss is infinite."""
    weights: Vector | None = None
    """The weights of this evaluation, shape (N,), if somebody has written others than were asked about; else None."""


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
