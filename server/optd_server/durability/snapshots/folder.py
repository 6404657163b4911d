"""The snapshots of one job on disk: written beside the others, synced, and put in place by a rename.

A snapshot is a folder of the job's version and last event, with files of tensors and `manifest.json`:

    {"format": 1, "checksum": "...", "files": {"weights-small.safetensors": {"bytes": 80, "checksum": "..."}},
     "snapshot": {"name": "digits", "version": 12, ...}}

All checksums are xxh3 of 128 bits. That of the manifest is over `files` and `snapshot`, as JSON with sorted keys and
without spaces. A file whose content is that of the snapshot before is a second name of the same file (a hard link), so
each folder is complete, and any of them can be removed or copied alone.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from google.protobuf import json_format

from optd_server.durability.files import remove_folder, sync_folder, write_file
from optd_server.durability.problems import Damage, NewerFormat, StorageProblem
from optd_server.durability.snapshots.contents import tensors_of
from optd_server.durability.snapshots.manifest import manifest_of, state_of
from optd_server.durability.snapshots.tensors import SUFFIX, TensorFile, checksum_of, file_checksum, pieces_of, write
from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.state import JobState

FORMAT = 1
"""The version of the form. A reader refuses newer ones."""
MANIFEST = "manifest.json"
_NEW = ".new"


@dataclass(frozen=True, slots=True)
class SnapshotFolder:
    """A snapshot on disk."""

    path: Path
    version: int
    event: int
    """The number of the last event that it contains."""

    def files(self) -> dict[str, Any]:
        """Return what the manifest says of the files; raise `Damage` or `NewerFormat`."""
        found: dict[str, Any] = _manifest(self.path)["files"]
        return found

    def manifest(self) -> pb.Snapshot:
        """Return the manifest; raise `Damage` or `NewerFormat`."""
        try:
            return json_format.ParseDict(_manifest(self.path)["snapshot"], pb.Snapshot())
        except json_format.ParseError as problem:
            raise Damage(self.path / MANIFEST, 0, str(problem)) from None

    def check(self) -> int:
        """Compare all files with their checksums, and return how many bytes they have; raise `Damage`. Blocks."""
        total = 0
        for name, known in self.files().items():
            path = self.path / name
            try:
                size = path.stat().st_size
                if size != known["bytes"]:
                    raise Damage(path, min(size, known["bytes"]), f"it has {size} bytes, and had {known['bytes']}")
                if file_checksum(path) != known["checksum"]:
                    raise Damage(path, 0, "its checksum is wrong")
            except FileNotFoundError:
                raise Damage(path, 0, "the file is missing") from None
            total += size
        return total

    def load(self) -> tuple[JobState, int]:
        """Return the state, and how many bytes its files have; raise `Damage` or `NewerFormat`. Blocks."""
        size = self.check()
        with ExitStack() as opened:
            files = {
                name.removesuffix(SUFFIX): opened.enter_context(TensorFile(self.path / name)) for name in self.files()
            }
            try:
                return state_of(self.manifest(), files), size
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as problem:
                raise Damage(self.path / MANIFEST, 0, f"it makes no state: {problem}") from None


def snapshots_in(folder: Path) -> list[SnapshotFolder]:
    """Return the snapshots of a job, the oldest first."""
    return sorted(_listed(folder), key=lambda each: each.event)


def _listed(folder: Path) -> Iterator[SnapshotFolder]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        version, _, event = path.name.partition("-")
        if path.is_dir() and version.isdecimal() and event.isdecimal():
            yield SnapshotFolder(path, int(version), int(event))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        form = found["format"]
        if form > FORMAT:
            raise NewerFormat(path, form, FORMAT)
        if found["checksum"] != _checksum(found):
            raise Damage(path, 0, "its checksum is wrong")
        _check_files(found["files"])
    except FileNotFoundError:
        raise Damage(path, 0, "the file is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise Damage(path, 0, f"it is no manifest: {problem}") from None
    manifest: dict[str, Any] = found
    return manifest


def _check_files(files: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError unless these are files of this folder, with their bytes and checksums."""
    for name, known in files.items():
        if Path(name).name != name or not name.endswith(SUFFIX) or "\0" in name or type(known["bytes"]) is not int:
            raise ValueError(f"{name!r} is no file of a snapshot")


def _checksum(manifest: dict[str, Any]) -> str:
    body = {name: manifest[name] for name in ("files", "snapshot")}
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def write_snapshot(
    folder: Path, state: JobState, event: int, before: SnapshotFolder | None
) -> tuple[SnapshotFolder, int, int]:
    """Write a snapshot of a state that nobody changes meanwhile.

    Return it, how many bytes were written, and how many bytes all of its files have.

    Files that are as in the snapshot `before` are not written again. When this returns, the snapshot survives a power
    cut. Raise OSError, and leave nothing behind. Blocks.
    """
    made = SnapshotFolder(folder / f"{state.version:020d}-{event:020d}", state.version, event)
    scratch = folder / f"{_NEW}-{made.path.name}"
    remove_folder(scratch)
    scratch.mkdir(mode=0o700)
    try:
        written, size = _write_files(scratch, state, event, before)
        remove_folder(made.path)
        scratch.replace(made.path)
        sync_folder(folder)
    except BaseException:
        remove_folder(scratch)
        raise
    return made, written, size


def _write_files(scratch: Path, state: JobState, event: int, before: SnapshotFolder | None) -> tuple[int, int]:
    known = _known_files(before)
    files: dict[str, Any] = {}
    total = 0
    for stem, tensors in tensors_of(state).items():
        name, parts = stem + SUFFIX, pieces_of(tensors)
        size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
        files[name] = {"bytes": size, "checksum": checksum_of(parts)}
        if before is not None and known.get(name) == files[name]:
            os.link(before.path / name, scratch / name)
            continue
        write(scratch / name, parts)
        total += size
    body = json_format.MessageToDict(manifest_of(state, event), preserving_proto_field_name=True)
    manifest = {"format": FORMAT, "files": files, "snapshot": body}
    text = json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1)
    write_file(scratch / MANIFEST, text.encode())
    return total + len(text), sum(file["bytes"] for file in files.values()) + len(text)


def _known_files(before: SnapshotFolder | None) -> dict[str, Any]:
    if before is None:
        return {}
    try:
        return before.files()
    except StorageProblem:
        return {}  # it is damaged, so everything is written anew


def remove_unfinished(folder: Path) -> None:
    """Remove what a server has left that ended while it wrote or removed a snapshot; raise OSError. Blocks."""
    for path in unfinished(folder):
        remove_folder(path)


def unfinished(folder: Path) -> list[Path]:
    """Return what a server has left that ended while it wrote or removed a snapshot."""
    return sorted(path for path in folder.glob(".*") if path.is_dir())


def drop_old(folder: Path, keep: int) -> None:
    """Remove all snapshots but the newest `keep`; raise OSError. Blocks."""
    for each in snapshots_in(folder)[:-keep]:
        remove_folder(each.path)
