"""Checks of the tensors that a server can hold as parameters, made before anything changes."""

from typing import Any

import torch
from torch.nn.parameter import is_lazy

from optd.params.overlap import overlaps_itself
from optd.torch.arrays import dtype_name
from optd.torch.distributed import ranks
from optd_wire.errors import DtypeMismatch, NotAnArray, ShapeMismatch

# A subclass may interpret its memory in its own way.
PLAIN = (torch.Tensor, torch.nn.Parameter)


def check_parameter(name: str, tensor: torch.Tensor, kind: str = "parameter") -> None:
    """Raises `NotAnArray` for a tensor that has no numbers yet, or that new weights cannot be written to.

    `kind` is what messages call it.
    """
    what = f"{kind} {name!r}"
    if is_lazy(tensor):
        got = "the uninitialized one of a lazy module: run a forward pass first, then construct the optimizer"
        raise NotAnArray(what=what, wanted="initialized", got=got)
    if _is_shard(tensor):
        whose = "the part of it that this rank holds (FSDP, DTensor), while all ranks share one job"
        got = f"{whose}: use DDP, or torch's own optimizer"
        raise NotAnArray(what=what, wanted="a whole tensor", got=got)
    check_dense(what, tensor)
    if tensor.is_inference():
        got = "one that was made in inference mode, which cannot be changed outside of it: register a clone() of it"
        raise NotAnArray(what=what, wanted="a tensor that can be written to", got=got)
    if not tensor.is_contiguous() and overlaps_itself(tensor.shape, tensor.stride(), 1):
        got = f"one of strides {tensor.stride()}, such as expand() makes: register a clone() of it"
        raise NotAnArray(what=what, wanted="a tensor whose elements do not share memory", got=got)


def _is_shard(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a different part of a parameter, as with FSDP (either version) or a DTensor."""
    if type(tensor).__name__ == "DTensor" or type(getattr(tensor, "data", None)).__name__ == "DTensor":
        return True
    flattened = getattr(tensor, "_is_flat_param", False) or getattr(tensor, "_fsdp_flattened", False)
    return bool(flattened) and ranks() > 1


def check_ordered(params: Any) -> None:
    """Raises TypeError for sets, as torch does for those in a group: each worker may have them in another order."""
    if isinstance(params, set | frozenset):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets "
            "will change between runs. Please use a list instead."
        )


def check_registered(name: str, tensor: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raises what prevents the exchange of a parameter that was registered with this shape and dtype.

    Its memory may have changed since, by an assignment to `.data` or a conversion of the model.
    """
    if tensor.shape != shape:
        got = f"{tuple(tensor.shape)}: a parameter keeps its shape as long as its optimizer; construct another one"
        raise ShapeMismatch(what="tensor", parameter=name, expected=tuple(shape), got=got)
    if tensor.dtype is not dtype:
        got = f"{dtype_name(tensor.dtype)}: convert the model before its optimizer is constructed"
        raise DtypeMismatch(what="tensor", parameter=name, expected=dtype_name(dtype), got=got)
    if not is_plain(tensor) or not tensor.is_contiguous() or tensor.is_inference():
        check_parameter(name, tensor)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is certainly plain memory of the host; a fast check that spares the others."""
    return type(tensor) in PLAIN and tensor.is_cpu and tensor.layout is torch.strided and tensor.data_ptr() != 0


def check_dense(what: str, tensor: torch.Tensor) -> None:
    """Raises `NotAnArray` unless all numbers of a tensor lie in memory."""
    if tensor.layout is not torch.strided:
        raise NotAnArray(what=what, wanted="a dense tensor", got=f"one of layout {tensor.layout}")
    if tensor.is_meta:
        raise NotAnArray(what=what, wanted="a tensor that holds numbers", got="one on the device meta")
    if tensor.numel() and type(tensor) in PLAIN and not tensor.untyped_storage().nbytes():
        raise NotAnArray(what=what, wanted="a tensor that holds numbers", got="one whose memory has been freed")
