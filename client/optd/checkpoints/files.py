"""What is in a checkpoint: its manifest, its tensors, and whether its files are what they were."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optd.checkpoints.place import Place
from optd_wire.checkpoint_format import (
    LONGEST_HEADER,
    MANIFEST,
    NewerManifest,
    checksum_of,
    parse_manifest,
    tensor_entries,
)
from optd_wire.errors import DamagedCheckpoint, NoCheckpoint
from optd_wire.values import Options

PIECE = 1 << 20
"""Bytes that are read at a time."""


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """A parameter in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    steps: int


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group in a checkpoint; `options` are its resolved options."""

    name: str
    algorithm: str
    options: Options
    parameters: tuple[StoredParameter, ...]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its manifest describes it."""

    path: str
    job: str
    version: int
    stepped_unix_ms: int
    """When the last step was taken; 0 before the first one."""
    algorithm: str
    groups: tuple[StoredGroup, ...]
    bytes: int
    """Of all files."""
    files: dict[str, int]
    """The bytes of each file but the manifest, by name."""


def read_info(place: Place) -> CheckpointInfo:
    """Describes the checkpoint at a place; raises `NoCheckpoint` or `DamagedCheckpoint`."""
    return described(place, *read_manifest(place))


def described(place: Place, text: bytes, found: dict[str, Any]) -> CheckpointInfo:
    """Describes the checkpoint with this manifest, as `read_manifest` returns it; raises `DamagedCheckpoint`."""
    stored = found["snapshot"]
    files = {name: int(each["bytes"]) for name, each in found["files"].items()}
    try:
        return CheckpointInfo(
            path=place.url,
            job=stored["name"],
            version=int(stored.get("version", 0)),
            stepped_unix_ms=int(stored.get("stepped_wall", 0) * 1000),
            algorithm=stored["algorithm"],
            groups=tuple(_group(each, stored["algorithm"]) for each in stored.get("groups", ())),
            bytes=sum(files.values()) + len(text),
            files=files,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise DamagedCheckpoint(place=place.url, file=MANIFEST, problem=f"it describes no job: {problem}") from None


def _group(stored: dict[str, Any], algorithm: str) -> StoredGroup:
    options = stored["options"]
    steps = stored.get("steps", ())
    return StoredGroup(
        name=options["group"],
        algorithm=options.get("algorithm") or algorithm,
        options={name: _value(value) for name, value in sorted(options.get("options", {}).items())},
        parameters=tuple(
            StoredParameter(
                each["name"],
                tuple(int(size) for size in each.get("shape", ())),
                each.get("dtype", "DTYPE_FLOAT32").removeprefix("DTYPE_").lower(),
                int(count),
            )
            for each, count in zip(stored.get("parameters", ()), steps, strict=True)
        ),
    )


def _value(stored: dict[str, Any]) -> Any:
    """The value of an option as JSON has it: one of `single`, `number`, `flag`, `integer`, `text`, `numbers`, ..."""
    for kind, value in stored.items():
        match kind:
            case "integer":
                return int(value)
            case "numbers":
                return tuple(value.get("numbers", ()))
            case "values":
                return tuple(_value(each) for each in value.get("values", ()))
            case _:
                return value
    return None


def read_manifest(place: Place) -> tuple[bytes, dict[str, Any]]:
    """The manifest's content, and what it says; raises `NoCheckpoint` or `DamagedCheckpoint`."""
    with place.open(MANIFEST) as file:
        text = file.read()
    try:
        return text, parse_manifest(text)
    except NewerManifest as newer:
        raise DamagedCheckpoint(place=place.url, file=MANIFEST, problem=f"{newer}: install a newer optd") from None
    except ValueError as problem:
        raise DamagedCheckpoint(place=place.url, file=MANIFEST, problem=str(problem)) from None


def verify(place: Place) -> CheckpointInfo:
    """Compares all files with their checksums; raises `NoCheckpoint`, or `DamagedCheckpoint`, which names the file."""
    text, found = read_manifest(place)
    info = described(place, text, found)
    for name, known in found["files"].items():
        try:
            size = place.size(name)
            if size != known["bytes"]:
                problem = f"it has {size} bytes, and had {known['bytes']}"
                raise DamagedCheckpoint(place=place.url, file=name, problem=problem)
            if checksum_of(pieces_of(place, name)) != known["checksum"]:
                raise DamagedCheckpoint(place=place.url, file=name, problem="its checksum is wrong")
        except NoCheckpoint:
            raise DamagedCheckpoint(place=place.url, file=name, problem="it is missing") from None
    return info


def pieces_of(place: Place, name: str) -> Iterator[bytes]:
    """The content of a file, in pieces."""
    with place.open(name) as file:
        while data := file.read(PIECE):
            yield data


def tensors_in(place: Place, kind: str) -> dict[str, Any]:
    """All tensors of a kind ("weights", "state") by name; raises `DamagedCheckpoint`."""
    tensors: dict[str, Any] = {}
    _, found = read_manifest(place)
    for name in found["files"]:
        if name.partition("-")[0] == kind:
            tensors |= _tensors(place, name)
    return tensors


def _tensors(place: Place, name: str) -> dict[str, Any]:
    data = bytearray().join(pieces_of(place, name))
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(len(data) - 8, LONGEST_HEADER):
            raise ValueError(f"its header would have {length} bytes, and the file has {len(data)}")
        entries = tensor_entries(data[8 : 8 + length], len(data))
    except ValueError as problem:
        raise DamagedCheckpoint(place=place.url, file=name, problem=str(problem)) from None
    return {
        tensor: np.frombuffer(memoryview(data)[entry.start : entry.stop], entry.dtype).reshape(entry.shape)
        for tensor, entry in entries.items()
    }
