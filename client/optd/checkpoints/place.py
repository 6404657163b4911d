"""Where a checkpoint is kept: a folder of this machine, or a path of a file system that fsspec knows.

A checkpoint is there as soon as its manifest is, and not before. A folder of this machine gets its name when all its
files are on the disk; elsewhere the manifest is written last, as a marker that the rest is complete.
"""

import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from optd_wire.checkpoint_format import MANIFEST, parse_manifest
from optd_wire.errors import CheckpointExists, InvalidRequest, NoCheckpoint, PlaceUnusable

_LOCAL = ("file", "local")
_TAKEN = "a checkpoint already, which overwrite=True (--overwrite) replaces"
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci"}
"""The protocols of file systems without folders: to make one would make a bucket that nobody has asked for."""


class Place(ABC):
    """One place for one checkpoint. Blocking; raises `PlaceUnusable` for what the file system refuses."""

    def __init__(self, url: str) -> None:
        self.url = url
        """As it was given."""

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def is_there(self) -> bool:
        """Whether there is a complete checkpoint."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Opens a file to read; raises `NoCheckpoint` if it is missing."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The bytes of a file; raises `NoCheckpoint` if it is missing."""

    @abstractmethod
    def writing(self, *, overwrite: bool) -> Any:
        """A context manager with an `Unfinished`, which becomes the checkpoint when the block ends without an error.

        If it ends with one, an older checkpoint is here still, unless its place is a remote one and a file was opened.
        Raises `CheckpointExists` unless `overwrite`.
        """

    @abstractmethod
    def remove(self) -> None:
        """Removes the checkpoint; raises `NoCheckpoint`."""

    def _names(self) -> list[str]:
        """The files of the checkpoint, the manifest first; raises `NoCheckpoint`, also if the manifest says nothing."""
        with self.open(MANIFEST) as file:
            text = file.read()
        try:
            return [MANIFEST, *parse_manifest(text)["files"]]
        except ValueError as problem:
            raise NoCheckpoint(place=self.url, problem=f"{MANIFEST}: {problem}") from None

    @abstractmethod
    def children(self) -> list["Place"]:
        """The places in this folder that have a checkpoint, by name."""


class Unfinished(ABC):
    """A checkpoint that is being written."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Opens a new file to write. The manifest must be the last one."""


def place_of(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Place:
    """The place that a path or a URL names, such as `runs/best` or `s3://bucket/runs/best`.

    `storage_options` are those of its file system in fsspec. Raises `InvalidRequest` if fsspec does not know it.
    """
    text = os.fspath(url)
    scheme, colon, rest = text.partition("://")
    if not colon or scheme in _LOCAL:
        return LocalPlace(Path(rest if colon else text), text)
    fsspec = import_module("fsspec")  # not before it is needed: it takes a tenth of a second
    try:
        system, path = fsspec.core.url_to_fs(text, **(storage_options or {}))
    except (ValueError, ImportError) as problem:
        raise InvalidRequest(problem=f"{text} cannot be reached: {problem}") from None
    return RemotePlace(system, path.rstrip("/"), text)


class LocalPlace(Place):
    """A folder of this machine."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(url)
        self._path = path

    def is_there(self) -> bool:
        """Whether there is a complete checkpoint."""
        return (self._path / MANIFEST).is_file()

    def open(self, name: str) -> IO[bytes]:
        """Opens a file to read."""
        with _named(self, name):
            return (self._path / name).open("rb")

    def size(self, name: str) -> int:
        """The bytes of a file."""
        with _named(self, name):
            return (self._path / name).stat().st_size

    @contextmanager
    def writing(self, *, overwrite: bool) -> Iterator[Unfinished]:
        """Writes to a folder beside this one, which then takes its name."""
        with _named(self):
            if self._path.exists() and not (overwrite and self.is_there()):
                # Also with `overwrite`: a folder without a manifest is no checkpoint, and may be anything.
                what = _TAKEN if self.is_there() else "something else than a checkpoint"
                raise CheckpointExists(place=self.url, what=what)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
            scratch.mkdir()
            try:
                unfinished = _LocalFiles(scratch)
                yield unfinished
                unfinished.sync()
                if self._path.exists():
                    before = scratch.with_name(f"{scratch.name}.before")
                    self._path.rename(before)
                    try:
                        scratch.rename(self._path)
                    except BaseException:
                        before.rename(self._path)
                        raise
                    shutil.rmtree(before)
                else:
                    scratch.rename(self._path)
                _sync_folder(self._path.parent)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise

    def remove(self) -> None:
        """Removes the files of the checkpoint, the manifest first, and the folder if nothing else is in it."""
        names = self._names()
        with _named(self, MANIFEST):
            for name in names:
                (self._path / name).unlink(missing_ok=name != MANIFEST)
            if not any(self._path.iterdir()):
                self._path.rmdir()

    def children(self) -> list[Place]:
        """The folders in this one that have a checkpoint."""
        with _named(self, ""):
            paths = sorted(path for path in self._path.iterdir() if not path.name.startswith("."))
        places = [LocalPlace(path, str(path)) for path in paths]
        return [place for place in places if place.is_there()]


class _LocalFiles(Unfinished):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("xb")

    def sync(self) -> None:
        for path in self._folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(self._folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemotePlace(Place):
    """A path of a file system of fsspec, where no file has a name before it is whole."""

    def __init__(self, system: Any, path: str, url: str) -> None:
        super().__init__(url)
        self._system = system
        self._path = path

    def is_there(self) -> bool:
        """Whether there is a complete checkpoint."""
        with _named(self):
            self._system.invalidate_cache()
            return bool(self._system.isfile(f"{self._path}/{MANIFEST}"))

    def open(self, name: str) -> IO[bytes]:
        """Opens a file to read."""
        with _named(self, name):
            opened: IO[bytes] = self._system.open(f"{self._path}/{name}", "rb")
            return opened

    def size(self, name: str) -> int:
        """The bytes of a file."""
        with _named(self, name):
            return int(self._system.size(f"{self._path}/{name}"))

    @contextmanager
    def writing(self, *, overwrite: bool) -> Iterator[Unfinished]:
        """Writes in place; from the first file on, an older checkpoint is none any more."""
        with _named(self):
            if not overwrite and self.is_there():
                raise CheckpointExists(place=self.url, what=_TAKEN)
            if not _OBJECT_STORES & {self._system.protocol, *self._system.protocol}:
                self._system.makedirs(self._path, exist_ok=True)
            unfinished = _RemoteFiles(self._system, self._path)
            try:
                yield unfinished
            except BaseException:
                unfinished.remove()
                raise

    def remove(self) -> None:
        """Removes the files of the checkpoint, the manifest first."""
        names = self._names()
        with _named(self, MANIFEST):
            for name in names:
                if name == MANIFEST or self._system.exists(f"{self._path}/{name}"):
                    self._system.rm_file(f"{self._path}/{name}")

    def children(self) -> list[Place]:
        """The paths in this one that have a checkpoint."""
        with _named(self, ""):
            self._system.invalidate_cache()
            found = self._system.ls(self._path, detail=True)
        names = sorted(each["name"].rstrip("/") for each in found if each["type"] == "directory")
        places = [RemotePlace(self._system, name, self._system.unstrip_protocol(name)) for name in names]
        return [place for place in places if place.is_there()]


class _RemoteFiles(Unfinished):
    def __init__(self, system: Any, path: str) -> None:
        self._system = system
        self._path = path
        self._names: list[str] = []

    def open(self, name: str) -> IO[bytes]:
        if not self._names and self._system.exists(f"{self._path}/{MANIFEST}"):
            self._system.rm_file(f"{self._path}/{MANIFEST}")
        self._names.append(name)
        opened: IO[bytes] = self._system.open(f"{self._path}/{name}", "wb")
        return opened

    def remove(self) -> None:
        for name in reversed(self._names):
            if self._system.exists(f"{self._path}/{name}"):
                self._system.rm_file(f"{self._path}/{name}")


@contextmanager
def _named(place: Place, name: str | None = None) -> Iterator[None]:
    """Turns what a file system raises into an error of optd that names the place, and the file `name` if it lacks."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as problem:
        if name is None:
            raise PlaceUnusable(place=place.url, problem=_words(problem)) from problem
        what = "there is no such folder" if not name else f"{name} is missing"
        raise NoCheckpoint(place=place.url, problem=what) from None
    except OSError as problem:
        if isinstance(problem, (CheckpointExists, NoCheckpoint, PlaceUnusable)):
            raise
        raise PlaceUnusable(place=place.url, problem=_words(problem)) from problem


def _words(problem: OSError) -> str:
    return (problem.strerror or str(problem)).lower()
