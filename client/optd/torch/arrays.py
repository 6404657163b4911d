"""Tensors and numpy arrays that have one memory. Of bfloat16, which torch and numpy do not exchange, by the bits."""

from typing import Any

import numpy as np
import torch

from optd.arrays import Array
from optd_wire.dtypes import DTYPES

_BFLOAT16 = DTYPES["bfloat16"]


def as_array(tensor: torch.Tensor) -> Array:
    """The numbers of a tensor: its own memory where numpy can have that, else a copy."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.detach().view(torch.int16).numpy(force=True)
        return bits.view(_BFLOAT16)
    array: Array = tensor.numpy(force=True)
    return array


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor in the memory of an array."""
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def dtype_of(tensor: torch.Tensor) -> np.dtype[Any]:
    """The dtype of the array that a tensor of parameters or gradients becomes."""
    return DTYPES[dtype_name(tensor.dtype)]


def dtype_name(dtype: torch.dtype) -> str:
    """As numpy and the contract spell it."""
    return str(dtype).removeprefix("torch.")
