"""Tensors in memory that is shared with the server, for `zero_copy`: it writes weights there and reads gradients.

A tensor that does not fit there (another device, other strides, a subclass, a gradient of 16 bits, which the server
reads in float32) keeps its memory and is copied.
"""

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from optd.params.flat_view import ArraysByGroup
from optd.registration.registration import Registration
from optd.torch.arrays import as_tensor
from optd.torch.tensors import Place, TensorGroup, can_move, is_in_place
from optd.transport.lane import SharedBuffers

Places = list[list[Place]]
# The server alternates between a few sets of regions.
MOST_SETS = 8


class SharedWeights:
    """A tensor for each parameter in each set of regions, so that steps alternate between the same tensors."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration
        self._lane: SharedBuffers | None = None
        self._known: dict[int, tuple[ArraysByGroup, Places]] = {}

    def places(self, index: int, group: TensorGroup) -> list[Place] | None:
        """The places of a group's weights now; None if they are in its arrays."""
        rows = self._registration.weights
        if rows[index] is group.arrays:
            return None
        return self._places(rows)[index]

    def _places(self, rows: ArraysByGroup) -> Places:
        lane = self._registration.session.shared_memory
        if lane is not self._lane or len(self._known) > MOST_SETS:
            self._known.clear()  # they would keep memory alive that the server has given up
            self._lane = lane
        known = self._known.get(id(rows))
        if known is None or known[0] is not rows:
            known = self._known[id(rows)] = (rows, _places_of(rows))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Home:
    """The places of gradients, and the registration's list that they were made from."""

    rows: ArraysByGroup
    places: Places


class SharedGradients:
    """Moves each gradient to where the server reads it, as soon as it is computed, and points `.grad` there.

    From then on it is accumulated, clipped and unscaled in place. Ends with `close`, or when this object is garbage.
    """

    def __init__(self, registration: Registration, groups: list[TensorGroup]) -> None:
        self._registration = registration
        self._groups = groups
        self._process = os.getpid()
        self._home: _Home | None = None
        handles: list[RemovableHandle] = []
        self._handles = handles
        self.close = weakref.finalize(self, _remove, handles)
        """Leaves gradients where they are, and moves no more of them."""
        for index in range(len(groups)):
            self.watch(index)
        _watching.add(self)

    def watch(self, index: int) -> None:
        """Begins to move the gradients of a group, except of parameters that need none now."""
        for place, tensor in enumerate(self._groups[index].tensors):
            if tensor.requires_grad and tensor.is_leaf and can_move(tensor):
                mover = _mover(weakref.ref(self), index, place)
                register: Any = tensor.register_post_accumulate_grad_hook
                self._handles.append(register(mover))

    def places(self) -> Places | None:
        """The places for gradients; None while there are none."""
        rows = self._registration.shared_gradients()
        if rows is None or os.getpid() != self._process:
            return None
        if self._home is None or self._home.rows is not rows:
            self._home = _Home(rows, _places_of(rows))
        return self._home.places

    def move(self, tensor: torch.Tensor, index: int, number: int) -> None:
        """Moves the gradient of a parameter, if it fits there."""
        places, gradient = self.places(), tensor.grad
        if places is None or gradient is None or not can_move(tensor) or not can_move(gradient, strides=False):
            return
        place = places[index][number]
        alike = gradient.dtype == place.tensor.dtype and gradient.shape == place.tensor.shape
        if alike and not gradient.requires_grad and gradient.numel() and not is_in_place(gradient, place):
            place.tensor.copy_(gradient)
            # An alias, so that other memory for `.grad` does not change the place's own tensor.
            tensor.grad = place.tensor.detach()

    def withdraw(self) -> None:
        """Copies gradients out of the shared memory, whose content must not change for now."""
        if self._home is None:
            return
        for group, row in zip(self._groups, self._home.places, strict=False):
            for tensor, place in zip(group.tensors, row, strict=False):
                if tensor.grad is not None and is_in_place(tensor.grad, place):
                    # Copied by numpy, as torch's threads do not survive a fork.
                    tensor.grad = as_tensor(place.array.copy())


def _mover(home: "weakref.ref[SharedGradients]", index: int, place: int) -> Callable[[torch.Tensor], None]:
    def move(tensor: torch.Tensor) -> None:
        held = home()
        if held is not None:
            held.move(tensor, index, place)

    return move


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _places_of(rows: ArraysByGroup) -> Places:
    return [[Place.of(array) for array in row] for row in rows]


_watching: "weakref.WeakSet[SharedGradients]" = weakref.WeakSet()


def _withdraw_all() -> None:
    """A forked child must not add to the gradients of its parent."""
    for home in list(_watching):
        home.withdraw()


os.register_at_fork(after_in_child=_withdraw_all)
