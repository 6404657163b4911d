"""Tensors and numpy arrays that have one memory. Of bfloat16, which torch and numpy do not exchange, by the bits.

A complex tensor is here what `torch.view_as_real` makes of it: an array with one more dimension, of two parts.
"""

from typing import Any

import numpy as np
import torch

from optd.params.flat_view import Array
from optd_wire.dtypes import DTYPES

_BFLOAT16 = DTYPES["bfloat16"]
_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def as_array(tensor: torch.Tensor) -> Array:
    """The numbers of a tensor: its own memory where numpy can have that, else a copy."""
    if tensor.is_complex():
        tensor = real(tensor)
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.detach().view(torch.int16).numpy(force=True)
        return bits.view(_BFLOAT16)
    array: Array = tensor.numpy(force=True)
    return array


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor itself, or of a complex one its parts."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def as_tensor(array: Array, *, is_complex: bool = False) -> torch.Tensor:
    """A tensor in the memory of an array; with `is_complex` a complex one, whose parts the last dimension has."""
    if is_complex:
        # By numpy: of no elements its strides are 0, which torch.view_as_complex refuses.
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
    """What the contract calls that dtype, or would call it if it had it."""
    return dtype_name(_PARTS.get(tensor.dtype, tensor.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """As numpy and the contract spell it."""
    return str(dtype).removeprefix("torch.")
