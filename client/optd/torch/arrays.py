"""Tensors and numpy arrays that share memory. Bfloat16, which torch and numpy do not exchange, passes as its bits.

A complex tensor becomes what `torch.view_as_real` gives: an array with a last dimension of two parts.
"""

from typing import Any

import numpy as np
import torch

from optd.params.flat_view import Array
from optd_wire.dtypes import DTYPES

_BFLOAT16 = DTYPES["bfloat16"]
_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def as_array(tensor: torch.Tensor) -> Array:
    """The numbers of a tensor: its own memory if numpy can share that, else a copy."""
    if tensor.is_complex():
        tensor = real(tensor)
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.detach().view(torch.int16).numpy(force=True)
        return bits.view(_BFLOAT16)
    array: Array = tensor.numpy(force=True)
    return array


def real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or the parts of a complex one."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def as_tensor(array: Array, *, is_complex: bool = False) -> torch.Tensor:
    """A tensor in the memory of an array; with `is_complex` a complex one, whose parts are the last dimension."""
    if is_complex:
        # By numpy: without elements the strides are 0, which torch.view_as_complex refuses.
        return torch.from_numpy(array.view(np.result_type(array.dtype, np.complex64))[..., 0])
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of the array that a tensor becomes."""
    return (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)


def dtype_of(tensor: torch.Tensor) -> np.dtype[Any]:
    """The dtype of the array that a tensor of parameters or gradients becomes."""
    return DTYPES[served_dtype(tensor)]


def served_dtype(tensor: torch.Tensor) -> str:
    """The contract's name of that dtype, whether or not the contract has it."""
    return dtype_name(_PARTS.get(tensor.dtype, tensor.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """As numpy and the contract spell it."""
    return str(dtype).removeprefix("torch.")
