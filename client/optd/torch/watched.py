"""What tensors hold, for `optd.local_changes`: their numbers as arrays of numpy, and what torch tells of writes.

Torch counts the writes to a tensor, but not those through `.data`, and not those of numpy; so content decides. What
torch tells says of which large tensors all of the content has to be looked at.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch

from optd.arrays import Array
from optd.contents import Contents, Differences
from optd.torch.arrays import as_array, dtype_of, real, shape_of
from optd.torch.tensors import TensorGroup


class WatchedTensors:
    """The tensors of all groups, by their content."""

    def __init__(self, groups: Sequence[TensorGroup]) -> None:
        self._groups = groups
        self._tensors = [tensor for group in groups for tensor in group.originals]
        sizes = [(math.prod(shape_of(tensor)), dtype_of(tensor)) for tensor in self._tensors]
        self._contents = Contents(sizes, tells_writes=True)
        self._large = sorted(self._contents.strides)
        self._arrays: list[Array] = [np.empty(0)] * len(self._tensors)
        """The memory of each tensor where numpy can have that, as long as it lies where `_pointers` says."""
        self._pointers = [-1] * len(self._tensors)
        self._anew: set[int] = set()
        """Those whose arrays may be good for one look."""
        self._noted: tuple[list[int], list[int]] = ([], [])

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Remember that the job has what they hold now; of those in `but`, what was remembered stays."""
        self._contents.note(self._look(), self._whole, but=but)
        pointers, versions = self._hints()
        if but:
            for place, number in enumerate(self._large):
                if number in but:
                    pointers[place], versions[place] = (noted[place] for noted in self._noted)
        self._noted = pointers, versions

    def differences(self) -> Differences:
        """Those that hold something else now."""
        arrays = self._look()
        now = zip(self._large, zip(*self._hints(), strict=True), zip(*self._noted, strict=True), strict=True)
        return self._contents.differences(arrays, self._whole, [number for number, seen, noted in now if seen != noted])

    def read(self, numbers: Collection[int]) -> None:
        """Make their groups' arrays hold them."""
        _read(self._groups, numbers)

    def _hints(self) -> tuple[list[int], list[int]]:
        """Where large tensors lie, and how often torch has written to them."""
        large = [self._tensors[number] for number in self._large]
        return [self._pointers[number] for number in self._large], [tensor._version for tensor in large]

    def _whole(self, number: int) -> Array:
        return as_array(self._tensors[number])

    def _look(self) -> list[Array]:
        """All numbers, or samples of them, as they are now."""
        pointers = [tensor.data_ptr() for tensor in self._tensors]
        # In the same memory a tensor may lie the other way round; not where it is in C order, with the same shape.
        odd = {number for number, tensor in enumerate(self._tensors) if not tensor.is_contiguous()}
        anew = self._anew | odd
        if pointers != self._pointers:
            pairs = zip(pointers, self._pointers, strict=True)
            anew |= {number for number, (now, before) in enumerate(pairs) if now != before}
        if anew:
            self._renew(anew, odd)
        self._pointers = pointers
        return self._arrays

    def _renew(self, numbers: Collection[int], odd: set[int]) -> None:
        elsewhere = [number for number in numbers if not is_at_hand(self._tensors[number])]
        self._anew = odd.union(elsewhere)
        for number in {*numbers}.difference(elsewhere):
            self._arrays[number] = as_array(self._tensors[number])
        if elsewhere:
            self._fetch(elsewhere)

    @torch.no_grad()
    def _fetch(self, numbers: Sequence[int]) -> None:
        """Brings tensors of other devices, or their samples, in one transfer for each device and dtype."""
        together: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for number in numbers:
            tensor = self._tensors[number]
            together.setdefault((tensor.device, tensor.dtype), []).append(number)
        for members in together.values():
            pieces = [self._piece(number) for number in members]
            joined = as_array(torch.cat(pieces))
            ends = np.cumsum([piece.numel() for piece in pieces])[:-1]
            for number, array in zip(members, np.split(joined, ends), strict=True):
                self._arrays[number] = array

    def _piece(self, number: int) -> torch.Tensor:
        tensor, stride = real(self._tensors[number].detach()), self._contents.strides.get(number)
        if stride is None:
            return tensor.reshape(-1)
        if tensor.is_contiguous():
            flat = tensor.view(-1)
            return torch.cat((flat[::stride], flat[-1:]))
        places = np.append(np.arange(0, tensor.numel(), stride), tensor.numel() - 1)
        return tensor[tuple(map(torch.from_numpy, np.unravel_index(places, tensor.shape)))]


class CountedTensors:
    """The tensors of all groups, by what torch tells: nothing of them is read."""

    def __init__(self, groups: Sequence[TensorGroup]) -> None:
        self._groups = groups
        self._tensors = [tensor for group in groups for tensor in group.originals]
        self._noted: list[int] = []

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Remember how often torch has written to them; of those in `but`, what was remembered stays."""
        versions = [tensor._version for tensor in self._tensors]
        for number in but:
            versions[number] = self._noted[number]
        self._noted = versions

    def differences(self) -> Differences:
        """Those that torch has written to."""
        pairs = enumerate(zip(self._tensors, self._noted, strict=True))
        return Differences([], [number for number, (tensor, noted) in pairs if tensor._version != noted])

    def read(self, numbers: Collection[int]) -> None:
        """Make their groups' arrays hold them."""
        _read(self._groups, numbers)


def is_at_hand(tensor: torch.Tensor) -> bool:
    """Whether numpy can have a tensor's memory."""
    return tensor.device.type == "cpu"


def _read(groups: Sequence[TensorGroup], numbers: Collection[int]) -> None:
    first = 0
    for group in groups:
        stop = first + len(group.tensors)
        places = [number - first for number in numbers if first <= number < stop]
        if places:
            group.read_some(places)
        first = stop
