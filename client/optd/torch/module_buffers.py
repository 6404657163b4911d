"""The buffers of a module, or tensors by name, as `optd.registration.buffers` takes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from optd.params.flat_view import Array
from optd.registration.buffers import NO_BUFFERS, Holder
from optd.torch.arrays import as_array, as_tensor, dtype_name, real
from optd.torch.checks import check_parameter
from optd_wire.errors import NotAnArray, StructureMismatch

BuffersOf = torch.nn.Module | Mapping[str, torch.Tensor]
"""What optimizers take as `buffers`."""
_WRAPPERS: Mapping[str, str] = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes that put a prefix before the names of the module that they wrap, and the attribute that has it."""


def holder_of(given: BuffersOf | None) -> Holder:
    """The buffers that an optimizer is given; raises `NotAnArray` for what a server cannot hold."""
    if given is None:
        return NO_BUFFERS
    if not isinstance(given, torch.nn.Module | Mapping):
        wanted = "a module, or a dict of tensors by name"
        raise NotAnArray(what="buffers", wanted=wanted, got=type(given).__name__)
    found = buffers_of(given) if isinstance(given, torch.nn.Module) else dict(_of_mapping(given))
    return TensorBuffers(found) if found else NO_BUFFERS


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module within wrappers such as DDP, which put a prefix before its names."""
    while type(module).__name__ in _WRAPPERS:
        module = getattr(module, _WRAPPERS[type(module).__name__])
    return module


def buffers_of(module: torch.nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """The persistent buffers by their names in the state dict, as a module has them at any time.

    A module gets other tensors when it moves to a device, or when a forward pass assigns them.
    """
    return dict(_of_module(unwrapped(module)))


def _of_module(module: torch.nn.Module) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    seen: set[int] = set()
    for path, part in module.named_modules():
        passing: Any = getattr(part, "_non_persistent_buffers_set", ())
        for name, tensor in part.named_buffers(recurse=False):
            if name not in passing and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, partial(getattr, part, name)


def _of_mapping(given: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    for name in given:
        yield str(name), partial(given.__getitem__, name)


class TensorBuffers:
    """Tensors by name, each asked for anew whenever it is read or written."""

    def __init__(self, tensors: Mapping[str, Callable[[], torch.Tensor]]) -> None:
        self.names = list(tensors)
        self._tensors = list(tensors.values())
        self._registered: list[tuple[torch.Size, torch.dtype]] = []
        for name, get in tensors.items():
            tensor = get()
            if not isinstance(tensor, torch.Tensor):
                raise NotAnArray(what=f"buffer {name!r}", wanted="a tensor", got=type(tensor).__name__)
            check_parameter(name, tensor, kind="buffer")
            self._registered.append((tensor.shape, tensor.dtype))

    def read(self) -> list[Array]:
        """What each holds now, in memory of the host. Raises `StructureMismatch` for another shape or dtype."""
        tensors = self._now()
        fetched = iter(fetch([tensor for tensor in tensors if not tensor.is_cpu]))
        return [as_array(tensor) if tensor.is_cpu else next(fetched) for tensor in tensors]

    @torch.no_grad()
    def write(self, place: int, array: Array) -> None:
        """Replaces the content of one buffer."""
        tensor = self._tensors[place]()
        tensor.copy_(as_tensor(array, is_complex=tensor.is_complex()))

    def marks(self) -> list[Any]:
        """Which tensor each is, and how often torch has written to it."""
        return [(id(tensor), tensor._version) for tensor in self._now()]

    def _now(self) -> list[torch.Tensor]:
        found = []
        for name, get, (shape, dtype) in zip(self.names, self._tensors, self._registered, strict=True):
            tensor = get()
            if tensor is None or tensor.shape != shape or tensor.dtype is not dtype:
                got = "None" if tensor is None else f"{dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}"
                expected = f"{dtype_name(dtype)} of shape {tuple(shape)}, as it was registered"
                what = f"buffer {name!r}"
                raise StructureMismatch(what=what, expected=expected, got=f"{got}: construct another optimizer")
            found.append(tensor)
        return found


@torch.no_grad()
def fetch(tensors: Sequence[torch.Tensor]) -> list[Array]:
    """The numbers of tensors, with one transfer for each device and dtype: there may be hundreds of small ones."""
    together: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, tensor in enumerate(tensors):
        together.setdefault((tensor.device, tensor.dtype), []).append(number)
    found: dict[int, Array] = {}
    for numbers in together.values():
        parts = [real(tensors[number]) for number in numbers]
        ends = np.cumsum([part.numel() for part in parts])[:-1]
        flat = np.split(as_array(torch.cat([part.reshape(-1) for part in parts])), ends)
        found.update((n, array.reshape(part.shape)) for n, array, part in zip(numbers, flat, parts, strict=True))
    return [found[number] for number in range(len(tensors))]
