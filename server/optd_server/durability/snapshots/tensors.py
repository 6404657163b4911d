"""Files in the safetensors format, written from where the numbers lie and read to where they belong.

The format (https://github.com/huggingface/safetensors#format) is the length of a JSON header in 8 bytes, the header,
and the numbers. Nothing that is read is trusted.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from optd_server.durability.files import write_all
from optd_server.durability.problems import Damage
from optd_wire.checkpoint_format import LONGEST_HEADER, TENSOR_DTYPES, TensorEntry, tensor_entries

Array = npt.NDArray[Any]
_PIECE = 1 << 20
"""Bytes that are hashed at a time while a file is read."""


def pieces_of(tensors: Mapping[str, Array]) -> list[memoryview | bytes]:
    """Return the bytes of a file of these tensors, in parts; the numbers are not copied unless they have gaps."""
    # Wide numbers first, so that each tensor begins at a multiple of its size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    views: list[memoryview | bytes] = []
    end = 0
    for name in names:
        array = np.ascontiguousarray(tensors[name])
        header[name] = {
            "dtype": TENSOR_DTYPES[array.dtype.name],
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
        if array.nbytes:
            views.append(_bytes_of(array))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return [len(text).to_bytes(8, "little"), text, *views]


def _bytes_of(array: Array) -> memoryview:
    """Return the memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def write(path: Path, parts: list[memoryview | bytes]) -> None:
    """Write a file and sync it; raise OSError. Blocks."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, parts, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TensorFile:
    """A file of tensors that is being read; a context manager. Raise `Damage` for a wrong header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._seen: dict[str, memoryview] = {}
        """The numbers that were read, where they were put."""
        try:
            self.entries = self._entries()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _entries(self) -> dict[str, TensorEntry]:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise Damage(self.path, 0, f"its header would have {length} bytes, and the file has {size}")
        header = _read(self._file, length)
        self._head = length.to_bytes(8, "little") + header
        try:
            return tensor_entries(header, size)
        except ValueError as problem:
            raise Damage(self.path, 8, str(problem)) from None

    def entry(self, name: str) -> TensorEntry:
        """Return where a tensor is, and what; raise `Damage`."""
        entry = self.entries.get(name)
        if entry is None:
            raise Damage(self.path, 8, f"it has no tensor {name!r}")
        return entry

    def read_into(self, name: str, out: Array) -> None:
        """Read a tensor to a contiguous array of its dtype and size; raise `Damage` if it does not fit."""
        entry = self.entry(name)
        if entry.dtype != out.dtype or entry.stop - entry.start != out.nbytes:
            wanted = f"{out.dtype} of {out.size} elements"
            raise Damage(
                self.path, 8, f"tensor {name!r} is {entry.dtype} of shape {entry.shape}, where {wanted} belong"
            )
        if out.nbytes:
            view = _bytes_of(out)
            self._file.seek(entry.start)
            _fill(self._file, view, self.path)
            self._seen[name] = view

    def checksum(self) -> str:
        """Return the checksum of the file. Numbers that were read, and not changed since, are not read again."""
        digest = xxhash.xxh3_128(self._head)
        for name in sorted(self.entries, key=lambda name: self.entries[name].start):
            digest.update(self._seen[name] if name in self._seen else self.read(name).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def read(self, name: str) -> Array:
        """Return a tensor; raise `Damage`."""
        entry = self.entry(name)
        out = np.empty(entry.shape, entry.dtype)
        self.read_into(name, out)
        return out


def _read(file: Any, length: int) -> bytes:
    data = bytearray(length)
    _fill(file, memoryview(data), Path(file.name))
    return bytes(data)


def _fill(file: Any, view: memoryview, path: Path) -> None:
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            raise Damage(path, file.tell(), "the file ends before its numbers do")
        view = view[count:]


def file_checksum(path: Path) -> str:
    """Return the checksum of a file on disk; raise OSError. Blocks."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
