"""Tensors as numpy arrays, which a `Registration` reads and writes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from optd.exchange.row_gradients import RowGradient
from optd.options.group_options import GROUP_OPTIONS
from optd.params.flat_view import Array
from optd.params.groups import NAME, PARAMS, ParamGroup, plain_option, read_algorithm
from optd.torch.arrays import as_array, as_tensor, dtype_name, dtype_of, served_dtype, shape_of
from optd.torch.checks import PLAIN, check_dense, check_parameter, check_registered, is_plain
from optd.torch.forms import NO_FORM, GroupForm
from optd.torch.naming import distinct_name, parameter_names
from optd_wire.dtypes import check_dtype
from optd_wire.errors import DtypeMismatch, DuplicateParameter, NotAnArray, StructureMismatch

PARAM_NAMES = "param_names"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a parameter's numbers in memory that is shared with the server."""

    array: Array
    tensor: torch.Tensor
    address: int

    @classmethod
    def of(cls, array: Array) -> "Place":
        """The place of an array."""
        tensor = as_tensor(array)
        return cls(array, tensor, tensor.data_ptr())


@dataclass(slots=True)
class TensorGroup(ParamGroup):
    """A group of tensors. Its `arrays` are the tensors' memory if numpy can share that, else copies.

    A tensor may get other memory at any time (`model.cuda()`, `tensor.data = ...`), so arrays are valid for one
    exchange with the server: `read` or `open` them before it, and `take` what was written into them after it.
    """

    tensors: list[torch.Tensor] = field(default_factory=list)
    """The list in torch's group."""
    originals: tuple[torch.Tensor, ...] = ()
    """The tensors that were registered."""
    form: GroupForm = NO_FORM
    """The form of its options and its state."""
    _registered: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)
    _lent: dict[int, int] = field(default_factory=dict)
    """The address of the shared memory that a tensor was last given, by its number."""
    _spare: dict[int, Array] = field(default_factory=dict)
    """New memory for tensors that lie in shared memory, until their weights are copied there."""

    @classmethod
    def of(
        cls, group: Mapping[str, Any], form: GroupForm, options: Collection[str], known: "Sequence[TensorGroup]"
    ) -> "TensorGroup":
        """Reads a group as torch resolved it, after the `known` groups; `options` are those of the server's algorithm.

        Parameters without a name are `param0` and so on over all groups, a group without one is `group{index}`. Names
        that are taken are changed: see `optd.torch.naming`. Raises `DuplicateParameter`, `UnsupportedDtype`,
        `NotAnArray` or `InvalidRequest`.
        """
        tensors, first = group[PARAMS], sum(len(each.tensors) for each in known)
        names = group.get(PARAM_NAMES) or [f"param{number}" for number in range(first, first + len(tensors))]
        given = group.get(NAME)
        own_name = f"group{len(known)}" if given is None or given == "" else str(given)
        own_name = distinct_name(own_name, [each.name for each in known])
        made = cls(
            name=own_name,
            names=parameter_names(own_name, map(str, names), [name for each in known for name in each.names]),
            options={
                name: plain_option(group[name])
                for name in (*options, *GROUP_OPTIONS)
                if name in options or name in group
            },
            algorithm=read_algorithm(group, own_name),
            tensors=tensors,
            form=form,
        )
        made._check()
        made.originals = tuple(tensors)
        made._registered.extend((tensor.shape, tensor.dtype) for tensor in tensors)
        made._read()
        return made

    def _check(self) -> None:
        places: dict[int, int] = {}
        for place, (name, tensor) in enumerate(zip(self.names, self.tensors, strict=True)):
            earlier = places.setdefault(id(tensor), place)
            if earlier != place:
                raise DuplicateParameter(group=self.name, first=self.names[earlier], second=name)
            check_parameter(name, tensor)
            check_dtype(name, served_dtype(tensor))

    def places(self) -> list[tuple[str, Array]]:
        """The tensors' memory by their names, with its strides."""
        return [(name, as_array(tensor)) for name, tensor in zip(self.names, self.tensors, strict=True)]

    def read(self) -> None:
        """Makes `arrays` hold the tensors' numbers."""
        self.check_still_fits()
        self._read()

    def read_some(self, places: Iterable[int]) -> None:
        """Makes some of `arrays` hold their tensors' numbers."""
        self.check_still_fits()
        for place in places:
            self.arrays[place] = np.asarray(as_array(self.tensors[place]), order="C")

    def _read(self) -> None:
        self.arrays[:] = [np.asarray(as_array(tensor), order="C") for tensor in self.tensors]

    def open(self) -> None:
        """Makes `arrays` ready to be written to; copies do not hold the tensors' numbers yet."""
        self.check_still_fits()
        self.arrays[:] = [self._opened(number, tensor) for number, tensor in enumerate(self.tensors)]

    def _opened(self, number: int, tensor: torch.Tensor) -> Array:
        if not shares_memory(tensor):
            return np.empty_like(self.arrays[number])
        if self._lent.get(number) != tensor.data_ptr():
            return as_array(tensor)
        # The tensor lies in shared memory, which the server may take back. An unwritten spare takes no memory.
        if number not in self._spare:
            self._spare[number] = np.empty(shape_of(tensor), dtype_of(tensor))
        return self._spare[number]

    def check_still_fits(self) -> None:
        """Raises what is wrong if the tensors are not those that were registered, or have another shape or dtype."""
        if len(self.tensors) != len(self.names):
            expected = f"{len(self.names)} parameters"
            raise StructureMismatch(what=f"group {self.name!r}", expected=expected, got=len(self.tensors))
        for name, tensor, (shape, dtype) in zip(self.names, self.tensors, self._registered, strict=True):
            check_registered(name, tensor, shape, dtype)

    @torch.no_grad()
    def take(self, *, complete: bool, places: Sequence[Place] | None = None) -> None:
        """Puts what was written into `arrays`, or lies in `places`, into the tensors, if it is `complete`.

        A tensor that can have the memory of its place gets that. Torch does not notice writes to memory that it shares
        with numpy, so it is told of them: a backward pass through a graph of the old weights then fails, as it does
        after a step of torch.
        """
        if places is not None and complete:
            for number, (tensor, place) in enumerate(zip(self.tensors, places, strict=True)):
                if not can_move(tensor) and self._lent.get(number) == tensor.data_ptr():
                    # It still has the shared memory of an earlier step, which the server takes back.
                    tensor.data = torch.empty_like(tensor)
                _move_to(tensor, place)
                self._lent[number] = place.address
        else:
            for number, (tensor, array) in enumerate(zip(self.tensors, self.arrays, strict=True)):
                if shares_memory(tensor):
                    if complete and array is self._spare.get(number):
                        tensor.data = as_tensor(self._spare.pop(number))
                    torch.autograd.graph.increment_version(tensor)
                elif complete:
                    tensor.copy_(as_tensor(array, is_complex=tensor.is_complex()))

    def gradients(self, places: Sequence[Place] | None = None) -> list[Any]:
        """The gradients; None for a tensor without one. Raises `NotAnArray`, or what no longer fits.

        A gradient that lies in its place is returned as that place's array.
        """
        self.check_still_fits()
        if places is None:
            return [_gradient(name, tensor) for name, tensor in zip(self.names, self.tensors, strict=True)]
        return [
            place.array if tensor.grad is not None and is_in_place(tensor.grad, place) else _gradient(name, tensor)
            for name, tensor, place in zip(self.names, self.tensors, places, strict=True)
        ]


def _move_to(tensor: torch.Tensor, place: Place) -> None:
    if not can_move(tensor) or place.tensor.data_ptr() != place.address:
        # `share_memory_()` on the tensor moved the place's own tensor along with it.
        tensor.copy_(as_tensor(place.array, is_complex=tensor.is_complex()))
        return
    tensor.data = place.tensor
    torch.autograd.graph.increment_version(tensor)


def can_move(tensor: torch.Tensor, *, strides: bool = True) -> bool:
    """Whether a tensor is plain memory of the host, in C order unless `strides` is False."""
    return (
        type(tensor) in PLAIN
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_complex()
        and (not strides or tensor.is_contiguous())
    )


def is_in_place(tensor: torch.Tensor, place: Place) -> bool:
    """Whether a tensor has exactly the memory of a place."""
    return (
        can_move(tensor)
        and tensor.data_ptr() == place.address
        and tensor.dtype == place.tensor.dtype
        and tensor.shape == place.tensor.shape
    )


def shares_memory(tensor: torch.Tensor) -> bool:
    """Whether numpy can share a tensor's memory as an array in C order."""
    return tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def _gradient(name: str, tensor: torch.Tensor) -> Array | RowGradient | None:
    gradient = tensor.grad
    if gradient is None:
        return None
    if gradient.dtype is not tensor.dtype:
        raise DtypeMismatch(
            what="gradient", parameter=name, expected=dtype_name(tensor.dtype), got=dtype_name(gradient.dtype)
        )
    if is_plain(gradient):
        return as_array(gradient)
    what = f"gradient of parameter {name!r}"
    if gradient.layout is torch.sparse_coo:
        return _rows_of(what, gradient)
    check_dense(what, gradient)
    return as_array(gradient)


def _rows_of(what: str, gradient: torch.Tensor) -> RowGradient:
    """A sparse gradient with each row once, as torch's optimizers coalesce it.

    `nn.Embedding(sparse=True)` gives gradients that are sparse in the first dimension, `to_sparse()` in all.
    """
    dims = gradient.sparse_dim()
    if not dims:
        raise NotAnArray(what=what, wanted="dense, as its shape is ()", got="a sparse one")
    rows = gradient.detach().coalesce()
    places = tuple(rows.indices().numpy(force=True))
    ids = np.ravel_multi_index(places, tuple(gradient.shape[:dims])) if gradient.numel() else places[0]
    return RowGradient(ids.astype(np.uint64), np.ascontiguousarray(as_array(rows.values())), dims)
