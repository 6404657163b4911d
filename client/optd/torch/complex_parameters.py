"""Complex parameters: a server holds their real and imaginary parts, as `torch.view_as_real` has them.

Torch's classes compute with the parts as well. Options and gradients that they refuse for complex parameters, or with
which they compute with complex numbers, are refused here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from optd.exchange.row_gradients import GradientsByGroup, RowGradient
from optd.torch.arrays import dtype_name
from optd.torch.tensors import TensorGroup
from optd_wire.dtypes import DTYPES
from optd_wire.errors import InvalidOption, NotAnArray, UnsupportedDtype
from optd_wire.values import OptionValue

_REAL_ONLY = ("adafactor", "lion", "muon", "sparse_adam")
"""Those of torch raise an error for complex parameters; Lion's step is a sign, which complex numbers do not have."""
_COMPLEX_ROWS = "adagrad"
"""Torch's class squares the complex numbers of a sparse gradient; for dense ones it squares their parts."""


def check_group(group: TensorGroup, options: Mapping[str, Any]) -> None:
    """Raises `UnsupportedDtype` or `InvalidOption` for complex parameters that the algorithm or the group cannot have.

    `options` are the group's own entries.
    """
    first = next(_complex_ones(group), None)
    if first is None:
        return
    name, tensor = first
    algorithm = group.form.algorithm
    if algorithm in _REAL_ONLY:
        supported = f"{', '.join(DTYPES)} ({algorithm} takes no complex parameters)"
        raise UnsupportedDtype(parameter=name, dtype=dtype_name(tensor.dtype), supported=supported)
    if options.get("clip_value") is not None:
        bound = f"None, as parameter {name!r} is complex: its elements have no order to clamp them by"
        raise InvalidOption(algorithm=algorithm, option="clip_value", bound=bound, value=options["clip_value"])


def check_norm_type(groups: Iterable[TensorGroup], options: Mapping[str, OptionValue]) -> None:
    """Raises `InvalidOption` if the job clips by a norm that differs between complex numbers and their parts."""
    norm_type = options.get("clip_norm_type", 2.0)
    first = next((each for group in groups for each in _complex_ones(group)), None)
    if norm_type != 2 and first is not None:
        bound = f"2, as parameter {first[0]!r} is complex"
        raise InvalidOption(algorithm="optd.Gradients", option="clip_norm_type", bound=bound, value=norm_type)


def check_gradients(gradients: GradientsByGroup, groups: Sequence[TensorGroup]) -> None:
    """Raises `NotAnArray` for sparse complex gradients if torch's class computes with complex numbers."""
    for row, group in zip(gradients, groups, strict=True):
        algorithm = group.form.algorithm
        if algorithm != _COMPLEX_ROWS:
            continue
        for name, tensor, gradient in zip(group.names, group.tensors, row, strict=True):
            if isinstance(gradient, RowGradient) and tensor.is_complex():
                what = f"gradient of complex parameter {name!r}"
                raise NotAnArray(what=what, wanted=f"dense for {algorithm}", got="a sparse one: take its to_dense()")


def _complex_ones(group: TensorGroup) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor) for name, tensor in zip(group.names, group.tensors, strict=True) if tensor.is_complex())
