"""The state of one flat segment: what an optimizer remembers about the parameters in it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Array, Shape, StateField, Vector

_NO_LOW = np.iinfo(np.int64).max
FEW = 32


@dataclass(frozen=True, slots=True, eq=False)
class FieldLayout:
    """Where the state of each parameter lies in the flat array of one field: its number of elements, and the first."""

    sizes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    shapes: Sequence[Shape | None] | None
    """The shape of each; None for a parameter without such state. None for all: the parameters' own shapes."""

    @property
    def count(self) -> int:
        """How many elements all have."""
        return int(self.sizes.sum())

    def elements(self, first: int, stop: int) -> slice:
        """Where the parameters from `first` to before `stop` lie."""
        if first == stop:
            return slice(0, 0)
        return slice(int(self.offsets[first]), int(self.offsets[stop - 1] + self.sizes[stop - 1]))


@dataclass(init=False, eq=False, repr=False)
class SegmentState:
    """State of parameters of one dtype that lie one after the other, without gaps, in a flat buffer.

    They belong to groups that lie one after the other, too. P is the number of parameters, N that of their elements,
    G that of groups.

    The fields of this dataclass are all that survives: a segment that is made of them, at whatever step counts, goes on
    with the same bits. The first four are the layout and never change; `step.apply` updates the other three in place.
    Every other attribute follows from them.
    """

    sizes: npt.NDArray[np.int64]
    """Elements of each parameter, shape (P,). A 0-d parameter has 1, an empty one 0."""
    weights_dtype: np.dtype[Any]
    shapes: Sequence[Shape]
    """The shape of each parameter."""
    groups: npt.NDArray[np.int64]
    """How many parameters each group has here, shape (G,). A group all of whose parameters have other dtypes has 0."""
    steps: npt.NDArray[np.int64]
    """How many steps each parameter took part in, shape (P,)."""
    state: dict[str, Vector]
    """State arrays by torch's names, flat; only those that some group's options have needed so far.

    The array of an elementwise field has shape (N,), that of another field what its `layout` says.
    """
    started: dict[str, npt.NDArray[np.bool_]]
    """For each state array, which parameters have it, shape (P,).

    torch gives a parameter its state at its first gradient; until then the array holds zeros for it.
    """

    def __init__(
        self,
        sizes: Sequence[int] | npt.NDArray[np.int64],
        weights_dtype: npt.DTypeLike,
        *,
        shapes: Sequence[Shape] | None = None,
        groups: Sequence[int] | npt.NDArray[np.int64] | None = None,
        steps: npt.NDArray[np.int64] | None = None,
        state: Mapping[str, Vector] | None = None,
        started: Mapping[str, npt.NDArray[np.bool_]] | None = None,
        fields: Iterable[StateField] = (),
    ) -> None:
        """Make a segment; arrays that are given are owned from then on, not copied.

        Args:
            sizes: Elements of each parameter.
            weights_dtype: The dtype of the weights.
            shapes: The shape of each parameter; None: they have one dimension.
            groups: How many parameters each group has here; None: there is one group.
            steps: The step count of each parameter; None: 0.
            state: State arrays by name, as another segment of this layout has them.
            started: For each of these arrays, which parameters have it.
            fields: The declarations of these arrays, which say how they are laid out. Elementwise ones may be missing.

        Raises:
            ValueError: The groups have more or fewer parameters, an array does not have the length that its layout
                says, or nothing says which parameters have it.
        """
        self.sizes = np.asarray(sizes, np.int64)
        self.weights_dtype = np.dtype(weights_dtype)
        self.shapes = [(int(size),) for size in self.sizes] if shapes is None else shapes
        self.groups = np.asarray([len(self.sizes)] if groups is None else groups, np.int64)
        self.steps = np.zeros(len(self.sizes), np.int64) if steps is None else steps
        self.state = dict(state or {})
        self.started = dict(started or {})

        # What follows from the layout.
        self.offsets: npt.NDArray[np.int64] = np.cumsum(self.sizes) - self.sizes
        """Where each parameter starts, shape (P,)."""
        self.count = int(self.sizes.sum())
        """N."""
        self.dtype = np.dtype(np.float32) if self.weights_dtype.itemsize == 2 else self.weights_dtype
        """The dtype of the arithmetic: of the gradient, and of every state array whose field does not say otherwise.

        The weights' own, but float32 for weights of 16 bits.
        """
        self._own_layout = FieldLayout(self.sizes, self.offsets, None)
        self._first = np.cumsum(self.groups) - self.groups
        self._all_filled = bool((self.groups > 0).all()) and len(self.groups) > 0

        # Caches.
        self._layouts: dict[str, FieldLayout] = {}
        """How fields that are not elementwise are laid out, for those that have been asked about."""
        self._prepared: dict[str, Vector] = {}
        """Zeros for state arrays that are missing so far."""

        for field in fields:
            self.layout(field)
        self._check()

    def _check(self) -> None:
        if self.groups.sum() != len(self.sizes):
            raise ValueError(f"groups must have {len(self.sizes)} parameters together, got {self.groups.sum()}")
        if {*self.state} != {*self.started}:
            raise ValueError(f"started must be of the state {[*self.state]}, got {[*self.started]}")
        for name, array in self.state.items():
            count = self.layout_of(name).count
            if array.shape != (count,):
                raise ValueError(f"state {name!r} must have shape ({count},), got {array.shape}")

    @property
    def narrow(self) -> bool:
        """Whether the weights have another dtype than the arithmetic."""
        return self.weights_dtype != self.dtype

    def has(self, field: StateField) -> bool:
        """Whether parameters of this dtype have such a field at all."""
        return self.narrow or not field.narrow_only

    def allocate(self, field: StateField) -> Vector:
        """Return a state array; a missing one is made of zeros, which no parameter has started.

        State that options no longer need is kept: momentum that is turned off and on again resumes where it was. The
        array is as long as the segment even if only one group needs it: the system gives memory only to the pages that
        are touched.
        """
        if field.name not in self.state:
            self.state[field.name] = self.prepare(field)
            del self._prepared[field.name]
            self.started[field.name] = np.zeros(len(self.sizes), np.bool_)
        return self.state[field.name]

    def prepare(self, field: StateField) -> Vector:
        """Return the zeros that `allocate` will take for a missing field; the field stays missing until then."""
        if field.name not in self._prepared:
            self._prepared[field.name] = np.zeros(self.layout(field).count, field.dtype or self.dtype)
        return self._prepared[field.name]

    def release(self) -> None:
        """Free all state arrays; the segment takes no further steps."""
        self.state, self.started, self._prepared = {}, {}, {}

    def layout(self, field: StateField) -> FieldLayout:
        """Return how a field is laid out here, whether it is allocated or not."""
        if field.elementwise:
            return self._own_layout
        if field.name not in self._layouts:
            shapes = [field.shape(shape) for shape in self.shapes]
            sizes = np.array([0 if shape is None else math.prod(shape) for shape in shapes], np.int64)
            self._layouts[field.name] = FieldLayout(sizes, np.cumsum(sizes) - sizes, shapes)
        return self._layouts[field.name]

    def layout_of(self, name: str) -> FieldLayout:
        """Return how an array of `state` is laid out."""
        return self._layouts.get(name, self._own_layout)

    def of(self, name: str, parameter: int) -> Array:
        """Return the state of one parameter, in its shape; shares the memory of the array."""
        layout = self.layout_of(name)
        shape = self.shapes[parameter] if layout.shapes is None else layout.shapes[parameter]
        part: Array = self.state[name][layout.elements(parameter, parameter + 1)]
        return part if shape is None else part.reshape(shape)

    def part(self, group: int) -> "SegmentPart":
        """Return one group's part of the segment."""
        first = int(self._first[group])
        return SegmentPart(self, slice(first, first + int(self.groups[group])))

    def fewest_and_most_steps(self) -> tuple[int, int]:
        """The fewest and the most steps that a parameter has had; there must be a parameter."""
        if len(self.sizes) <= FEW:  # numpy takes longer to begin than Python for so few
            steps = self.steps.tolist()
            return min(steps), max(steps)
        return int(self.steps.min()), int(self.steps.max())

    def step_ranges(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the fewest and the most steps that a parameter of each group has had, shape (G,) each.

        For a group without parameters here they are the largest integer and 0, which change no minimum and no maximum.
        """
        if len(self.groups) == 1 and self._all_filled:
            fewest, most = self.fewest_and_most_steps()
            return np.array((fewest,)), np.array((most,))
        if self._all_filled:
            return np.minimum.reduceat(self.steps, self._first), np.maximum.reduceat(self.steps, self._first)
        low = np.full(len(self.groups), _NO_LOW)
        high = np.zeros(len(self.groups), np.int64)
        filled = self.groups > 0
        if filled.any():
            first = self._first[filled]
            low[filled] = np.minimum.reduceat(self.steps, first)
            high[filled] = np.maximum.reduceat(self.steps, first)
        return low, high


class SegmentPart:
    """One group of a segment, as if it had a segment of its own. All arrays are views of the segment's."""

    def __init__(self, segment: SegmentState, parameters: slice) -> None:
        self._segment = segment
        self._parameters = parameters
        self.sizes = segment.sizes[parameters]
        self.count = int(self.sizes.sum())
        self.start = int(segment.offsets[parameters.start]) if self.count else 0
        """Where it begins in the segment; 0 if it has no elements."""
        self.dtype = segment.dtype
        self.steps = segment.steps[parameters]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each parameter starts, counted from the part's beginning."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def state(self) -> dict[str, Vector]:
        """State arrays by name. Use `allocate` to add one."""
        return {name: array[self._elements(name)] for name, array in self._segment.state.items()}

    @property
    def started(self) -> dict[str, npt.NDArray[np.bool_]]:
        """For each state array, which parameters have it."""
        return {name: array[self._parameters] for name, array in self._segment.started.items()}

    def allocate(self, field: StateField) -> Vector:
        """Return the part's elements of a state array; a missing one is made for the whole segment."""
        return self._segment.allocate(field)[self._elements(field.name)]

    def of(self, name: str, parameter: int) -> Array:
        """Return the state of one parameter, counted from the part's first, in its shape."""
        return self._segment.of(name, self._parameters.start + parameter)

    def sizes_of(self, name: str) -> npt.NDArray[np.int64]:
        """Return how many elements of a state array each parameter has."""
        return self._segment.layout_of(name).sizes[self._parameters]

    def _elements(self, name: str) -> slice:
        return self._segment.layout_of(name).elements(self._parameters.start, self._parameters.stop)
