"""The tensors of a model that follow a job: which parameter of the job each of them gets, and how it gets there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from optd.params.flat_view import Array
from optd.registration.buffers import has_buffers, in_dtype
from optd.torch.arrays import as_tensor, dtype_name, served_dtype, shape_of
from optd.torch.checks import check_parameter
from optd.torch.module_buffers import buffers_of, unwrapped
from optd_wire.dtypes import DTYPES
from optd_wire.errors import DtypeMismatch, ShapeMismatch, StructureMismatch
from optd_wire.values import GroupInfo, ParameterInfo

NamesOf = Mapping[str, str] | Callable[[str], str]
"""From a model's names to those of the job."""
Getters = Mapping[str, Callable[[], torch.Tensor]]
Layout = tuple[tuple[ParameterInfo, ...], ...]
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of a model, asked for anew at each write, and its place in the job."""

    name: str
    get: Callable[[], torch.Tensor]
    group: int
    place: int

    def check(self, array: Array) -> None:
        """Raises `ShapeMismatch` if the tensor has another shape by now."""
        shape = shape_of(self.get())
        if shape != array.shape:
            got = f"{shape}: it has changed since the follower was made"
            raise ShapeMismatch(what="the model's tensor", parameter=self.name, expected=array.shape, got=got)

    def write(self, array: Array) -> None:
        """Replaces the tensor's numbers."""
        tensor = self.get()
        if not tensor.is_floating_point() and not tensor.is_complex():
            array = in_dtype(array, np.dtype(dtype_name(tensor.dtype)))
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.copy_(as_tensor(array, is_complex=tensor.is_complex()))


def layout_of(groups: Sequence[GroupInfo]) -> Layout:
    """Names, shapes and dtypes of a job's parameters."""
    return tuple(tuple(group.parameters) for group in groups)


def match(
    model: torch.nn.Module, groups: Sequence[GroupInfo], names: NamesOf | None, *, strict: bool, cast: bool
) -> list[Target]:
    """Finds for each tensor of a model its parameter in a job.

    By names, or by order if the job's optimizer was given parameters without names. With `strict` both must have the
    same ones; otherwise the others stay as they are. With `cast` a tensor may have another floating-point dtype.

    Raises `StructureMismatch`, `ShapeMismatch`, `DtypeMismatch`, or `NotAnArray` for a tensor that cannot follow.
    """
    first = 1 if has_buffers(groups) else 0
    found = _matched("parameters", parameters_of(model), _places(groups, first, len(groups)), names, strict=strict)
    if first:
        found += _matched("buffers", buffers_of(model), _places(groups, 0, 1), names, strict=strict)
    for target in found:
        _check(target, groups[target.group].parameters[target.place], cast=cast)
    return found


def parameters_of(model: torch.nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """The parameters of a model by the names that `named_parameters()` gives them, without those of wrappers."""
    return dict(_parameters(unwrapped(model)))


def _parameters(model: torch.nn.Module) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    seen: set[int] = set()
    for path, part in model.named_modules():
        for name, tensor in part.named_parameters(recurse=False):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, partial(getattr, part, name)


def _places(groups: Sequence[GroupInfo], first: int, end: int) -> dict[str, tuple[int, int]]:
    return {
        parameter.name: (index, place)
        for index in range(first, end)
        for place, parameter in enumerate(groups[index].parameters)
    }


def _matched(
    kind: str, tensors: Getters, places: Mapping[str, tuple[int, int]], names: NamesOf | None, *, strict: bool
) -> list[Target]:
    wanted = _wanted(list(tensors), list(places), names)
    missing = [name for name in wanted if name not in places]
    left_over = [name for name in places if name not in wanted]
    found = [Target(own, tensors[own], *places[name]) for name, own in wanted.items() if name in places]
    if (strict and (missing or left_over)) or not found:
        expected = f"the {len(tensors)} {kind} of the model, or strict=False, which leaves out the others"
        problems = [f"none named {_some(missing)}"] if missing else []
        problems += [f"{_some(left_over)}, which the model has not"] if left_over else []
        got = f"{' and '.join(problems) or 'none'}; names= translates names of the model"
        raise StructureMismatch(what=f"the job's {kind}", expected=expected, got=got)
    return found


def _wanted(own: list[str], served: list[str], names: NamesOf | None) -> dict[str, str]:
    """The names that the model's tensors have in the job, with their own names."""
    if names is None and served == [f"param{number}" for number in range(len(own))] and served != own:
        return dict(zip(served, own, strict=True))  # the optimizer was given `model.parameters()`
    if names is None:
        return {name: name for name in own}
    translated = [names.get(name, name) if isinstance(names, Mapping) else names(name) for name in own]
    wanted = dict(zip(translated, own, strict=True))
    if len(wanted) < len(own):
        twice = next(name for name in translated if translated.count(name) > 1)
        expected = "another name for each tensor of the model"
        raise StructureMismatch(what="names=", expected=expected, got=f"{twice!r} twice")
    return wanted


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _check(target: Target, info: ParameterInfo, *, cast: bool) -> None:
    tensor = target.get()
    if not tensor.is_inference():
        check_parameter(target.name, tensor)
    if shape_of(tensor) != info.shape:
        what = f"the model's {target.name!r}, which gets the weights"
        raise ShapeMismatch(what=what, parameter=info.name, expected=info.shape, got=shape_of(tensor))
    dtype = _dtype_in_job(tensor)
    if dtype != info.dtype and not (cast and dtype in DTYPES and tensor.is_floating_point()):
        expected = f"{info.dtype}, as the job has it, or cast=True, which rounds floating-point numbers"
        what = f"the model's {target.name!r}, which gets the weights"
        raise DtypeMismatch(what=what, parameter=info.name, expected=expected, got=dtype_name(tensor.dtype))


def _dtype_in_job(tensor: torch.Tensor) -> str:
    """The dtype with which a job holds a parameter or buffer: integers and bools travel as float64."""
    return served_dtype(tensor) if tensor.is_floating_point() or tensor.is_complex() else "float64"
