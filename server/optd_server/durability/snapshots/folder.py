"""The snapshots of one job on disk: written beside the others, synced, and put in place by a rename.

A snapshot is a folder of the job's version and last event, with files of tensors and the manifest that
`optd_wire.checkpoint_format` describes. A file whose content is that of the snapshot before is a second name of the
same file (a hard link), so each folder is complete, and any of them can be removed or copied alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from optd_server.durability.files import is_full, remove_folder, sync_folder, write_file
from optd_server.durability.problems import Damage, NewerFormat, StorageProblem
from optd_server.durability.snapshots.contents import tensors_of
from optd_server.durability.snapshots.manifest import manifest_of, state_of
from optd_server.durability.snapshots.tensors import TensorFile, file_checksum, pieces_of, write
from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.state import JobState
from optd_wire.checkpoint_format import (
    FORMAT,
    MANIFEST,
    SUFFIX,
    NewerManifest,
    checksum_of,
    manifest_text,
    parse_manifest,
)
from optd_wire.errors import OptdError, VersionNotKept

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
        return self._message(_manifest(self.path))

    def _message(self, manifest: dict[str, Any]) -> pb.Snapshot:
        try:
            return json_format.ParseDict(manifest["snapshot"], pb.Snapshot())
        except json_format.ParseError as problem:
            raise Damage(self.path / MANIFEST, 0, str(problem)) from None

    def check(self) -> int:
        """Compare all files with their checksums, and return how many bytes they have; raise `Damage`. Blocks."""
        files = self.files()
        total = self._check_sizes(files)
        for name, known in files.items():
            _check_sum(self.path / name, file_checksum(self.path / name), known)
        return total

    def _check_sizes(self, files: dict[str, Any]) -> int:
        for name, known in files.items():
            path = self.path / name
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise Damage(path, 0, "the file is missing") from None
            if size != known["bytes"]:
                raise Damage(path, min(size, known["bytes"]), f"it has {size} bytes, and had {known['bytes']}")
        return sum(known["bytes"] for known in files.values())

    def load(self) -> tuple[JobState, int]:
        """Return the state, and how many bytes its files have; raise `Damage` or `NewerFormat`. Blocks.

        Each file is read once: its checksum is that of the numbers where they now lie.
        """
        manifest = _manifest(self.path)
        known = manifest["files"]
        size = self._check_sizes(known)
        with ExitStack() as opened:
            files = {name: opened.enter_context(TensorFile(self.path / name)) for name in known}
            try:
                state = state_of(
                    self._message(manifest), {name.removesuffix(SUFFIX): file for name, file in files.items()}
                )
            except (ValueError, LookupError, OverflowError, TypeError, AttributeError, OptdError) as problem:
                raise Damage(self.path / MANIFEST, 0, f"it makes no state: {problem}") from None
            for name, file in files.items():
                _check_sum(file.path, file.checksum(), known[name])
        return state, size


def _check_sum(path: Path, found: str, known: dict[str, Any]) -> None:
    if found != known["checksum"]:
        raise Damage(path, 0, "its checksum is wrong")


def snapshots_in(folder: Path) -> list[SnapshotFolder]:
    """Return the snapshots of a job, the oldest first."""
    return sorted(_listed(folder), key=lambda each: each.event)


def snapshot_of_version(known: Sequence[SnapshotFolder], job: str, version: int) -> SnapshotFolder:
    """Return the newest snapshot of a version; raise `VersionNotKept`. `known` has them by age, the oldest first."""
    for each in reversed(known):
        if each.version == version:
            return each
    kept = ", ".join(str(each.version) for each in known) or "no version"
    raise VersionNotKept(job=job, version=version, kept=kept)


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
        return checked_manifest(path.read_bytes(), path)
    except FileNotFoundError:
        raise Damage(path, 0, "the file is missing") from None


def checked_manifest(text: bytes | bytearray, path: Path) -> dict[str, Any]:
    """Return a manifest; raise `Damage` or `NewerFormat`, which name `path`."""
    try:
        return parse_manifest(text)
    except NewerManifest as newer:
        raise NewerFormat(path, newer.found, FORMAT) from None
    except ValueError as problem:
        raise Damage(path, 0, str(problem)) from None


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
    for name, parts in contents_of(state):
        files[name] = described(parts)
        if before is not None and known.get(name) == files[name]:
            try:
                os.link(before.path / name, scratch / name)
                continue
            except OSError as problem:  # the file is gone, or the file system has no links
                if is_full(problem):
                    raise
        write(scratch / name, parts)
        total += files[name]["bytes"]
    manifest = manifest_of_files(files, state, event)
    write_file(scratch / MANIFEST, manifest)
    return total + len(manifest), sum(file["bytes"] for file in files.values()) + len(manifest)


def contents_of(state: JobState) -> Iterator[tuple[str, list[memoryview | bytes]]]:
    """Yield the files of a snapshot but its manifest: the name of each, and its bytes, which lie in the state."""
    for stem, tensors in tensors_of(state).items():
        yield stem + SUFFIX, pieces_of(tensors)


def described(parts: list[memoryview | bytes]) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    return {"bytes": sum(memoryview(part).nbytes for part in parts), "checksum": checksum_of(parts)}


def manifest_of_files(files: dict[str, Any], state: JobState, event: int) -> bytes:
    """Return the content of a manifest. `files` describes the other files by name."""
    body = json_format.MessageToDict(manifest_of(state, event), preserving_proto_field_name=True)
    return manifest_text(files, body)


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
