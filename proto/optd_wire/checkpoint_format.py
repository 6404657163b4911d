"""What a checkpoint is on disk, for whoever writes or reads one: the manifest that names all other files.

    {"format": 1, "checksum": "...", "files": {"weights-small.safetensors": {"bytes": 80, "checksum": "..."}},
     "snapshot": {"name": "digits", "version": "12", ...}}

All checksums are xxh3 of 128 bits. That of the manifest is over `files` and `snapshot`, as JSON with sorted keys and
without spaces. Pure: bytes in, values out.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from optd_wire.dtypes import DTYPES

FORMAT = 1
"""The version of the form. A reader refuses newer ones."""
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
_FILE_NAME = re.compile(rf"[a-z]+(-[a-z0-9]+)?{re.escape(SUFFIX)}")
LONGEST_HEADER = 100 << 20
MOST_DIMENSIONS = 64
"""As many as numpy knows."""

TENSOR_DTYPES: dict[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "uint64": "U64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}
"""The names of dtypes in the safetensors format."""
_DTYPES = {theirs: DTYPES.get(ours) or np.dtype(ours) for ours, theirs in TENSOR_DTYPES.items()}


class NewerManifest(ValueError):
    """A manifest of a later version of optd."""

    def __init__(self, found: int) -> None:
        super().__init__(f"it has format {found}, and this version of optd reads formats up to {FORMAT}")
        self.found = found


def checksum_of(parts: Iterable[bytes | memoryview]) -> str:
    """The checksum of a file, whose bytes come in parts."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def manifest_text(files: Mapping[str, Any], snapshot: Mapping[str, Any]) -> bytes:
    """The content of a manifest. `files` has the bytes and the checksum of each other file, by name."""
    manifest = {"format": FORMAT, "files": files, "snapshot": snapshot}
    return json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1).encode()


def parse_manifest(text: bytes | bytearray) -> dict[str, Any]:
    """The object in a manifest; raises `NewerManifest`, or ValueError with what is wrong."""
    try:
        found = json.loads(text)
        form = found["format"]
        if form > FORMAT:
            raise NewerManifest(form)
        if found["checksum"] != _checksum(found):
            raise ValueError("its checksum is wrong")
        for name, each in found["files"].items():
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name[:200]!r} is no name of a file of tensors")
            if type(each["bytes"]) is not int or each["bytes"] < 0 or not isinstance(each["checksum"], str):
                raise ValueError(f"{name} has no size or no checksum")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as problem:
        raise ValueError(f"it is no manifest: {problem}") from None
    manifest: dict[str, Any] = found
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    body = {name: manifest[name] for name in ("files", "snapshot")}
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    """Where its numbers begin, in bytes from the beginning of the file."""
    stop: int


def tensor_entries(header: bytes | bytearray, size: int) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file of `size` bytes, by name; raises ValueError with what is wrong.

    `header` is the JSON behind the first 8 bytes. Nothing in it is trusted: numbers that overlap, leave a gap or do not
    fit their shape are refused.
    """
    first = 8 + len(header)
    try:
        found = json.loads(header.decode(), object_pairs_hook=_unique)
        found.pop("__metadata__", None)
        entries = {name: _entry(each, first) for name, each in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"its header is wrong: {problem}") from None
    end = first
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ValueError(f"tensor {name!r} begins at byte {entry.start}, where {end} is next")
        end = entry.stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, and the file has {size}")
    return entries


def _entry(found: Mapping[str, Any], first: int) -> TensorEntry:
    dtype = _DTYPES[found["dtype"]]
    shape = _integers(found["shape"], MOST_DIMENSIONS)
    start, stop = _integers(found["data_offsets"], 2)
    if min((start, *shape), default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {start} to {stop} are no {found['dtype']} of shape {shape}")
    return TensorEntry(dtype, shape, first + start, first + stop)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _integers(found: Any, most: int) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > most or any(type(each) is not int for each in found):
        raise ValueError(f"{str(found)[:80]} is no list of up to {most} integers")
    return tuple(found)
