"""Finds changes of tensors, for `local_changes`: by their content, and by the writes that torch counts.

Torch does not count writes through `.data` or by numpy, so the content decides. Torch's count tells for which large
tensors all of the content must be compared.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch

from optd.params.flat_view import Array
from optd.registration.contents import Contents, Differences, Look, sample_places
from optd.torch.arrays import as_array, dtype_of, real, shape_of
from optd.torch.tensors import TensorGroup


class WatchedTensors:
    """The tensors of all groups, compared by their content."""

    def __init__(self, groups: Sequence[TensorGroup]) -> None:
        self._groups = groups
        self._tensors = [tensor for group in groups for tensor in group.originals]
        sizes = [(math.prod(shape_of(tensor)), dtype_of(tensor)) for tensor in self._tensors]
        self._contents = Contents(sizes, tells_writes=True)
        self._large = sorted(self._contents.strides)
        self._pointers: list[int] = []
        self._addresses = np.empty(0, np.int64)
        self._itemsizes = np.array([dtype.itemsize for _, dtype in sizes], np.int64)
        self._odd: set[int] = set()
        """Tensors at unaligned addresses, which numpy does not read."""
        self._elsewhere: list[int] = []
        """Tensors on other devices, as long as all tensors have the addresses in `_pointers`."""
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
        """Those whose content differs now."""
        look, hints = self._look(checked=False), self._hints()
        if hints == self._noted:
            return self._contents.differences(look, self._whole)
        pairs = zip(self._large, zip(*hints, strict=True), zip(*self._noted, strict=True), strict=True)
        written = [number for number, now, before in pairs if now != before]
        return self._contents.differences(look, self._whole, written)

    def read(self, numbers: Collection[int]) -> None:
        """Make their groups' arrays hold them."""
        _read(self._groups, numbers)

    def _hints(self) -> tuple[list[int], list[int]]:
        """The addresses of large tensors, and how often torch has written to them."""
        return [self._pointers[number] for number in self._large], [self._tensors[n]._version for n in self._large]

    def _whole(self, number: int) -> Array:
        return as_array(self._tensors[number])

    def _look(self, *, checked: bool = True) -> Look:
        """The addresses of all numbers. Unless `checked`, raises what no longer fits, before memory is read."""
        pointers = [tensor.data_ptr() for tensor in self._tensors]
        if pointers != self._pointers:
            for group in () if checked else self._groups:
                group.check_still_fits()
            self._elsewhere = [number for number, tensor in enumerate(self._tensors) if not tensor.is_cpu]
            self._pointers, self._addresses = pointers, np.array(pointers, np.int64)
            self._odd = set(np.flatnonzero(self._addresses % self._itemsizes).tolist())
        odd = self._odd
        given = {n: as_array(each) for n, each in enumerate(self._tensors) if not each.is_contiguous() or n in odd}
        if self._elsewhere:
            given |= self._fetched()
        return Look(self._addresses, given)

    @torch.no_grad()
    def _fetched(self) -> dict[int, Array]:
        """Tensors of other devices, or samples of them, with one transfer for each device and dtype."""
        together: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for number in self._elsewhere:
            tensor = self._tensors[number]
            together.setdefault((tensor.device, tensor.dtype), []).append(number)
        found: dict[int, Array] = {}
        for members in together.values():
            pieces = [self._piece(number) for number in members]
            ends = np.cumsum([piece.numel() for piece in pieces])[:-1]
            found.update(zip(members, np.split(as_array(torch.cat(pieces)), ends), strict=True))
        return found

    def _piece(self, number: int) -> torch.Tensor:
        tensor, stride = real(self._tensors[number].detach()), self._contents.strides.get(number)
        if stride is None:
            return tensor.reshape(-1)
        if tensor.is_contiguous():
            flat = tensor.view(-1)
            return torch.cat((flat[::stride], flat[-1:]))
        places = np.unravel_index(sample_places(tensor.numel(), stride), tensor.shape)
        return tensor[tuple(map(torch.from_numpy, places))]


class CountedTensors:
    """The tensors of all groups, by the writes that torch counts: no content is read."""

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

    def add(self, group: TensorGroup) -> None:
        """Begins to watch a group whose tensors hold the job's weights."""
        self._tensors += group.originals
        self._noted += [tensor._version for tensor in group.originals]

    def differences(self) -> Differences:
        """Those that torch has written to."""
        pairs = enumerate(zip(self._tensors, self._noted, strict=True))
        return Differences([], [number for number, (tensor, noted) in pairs if tensor._version != noted])

    def read(self, numbers: Collection[int]) -> None:
        """Make their groups' arrays hold them."""
        _read(self._groups, numbers)


def _read(groups: Sequence[TensorGroup], numbers: Collection[int]) -> None:
    first = 0
    for group in groups:
        stop = first + len(group.tensors)
        places = [number - first for number in numbers if first <= number < stop]
        if places:
            group.read_some(places)
        first = stop
