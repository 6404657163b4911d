"""The data directory of a server: who has it, its format, and the folders of its jobs.

    DIR/optd.json                     format, and the kind of processor that wrote it
    DIR/lock                          locked by the server that runs
    DIR/epochs.json                   the last epochs of jobs that have ended
    DIR/incoming/                     checkpoints that clients are sending
    DIR/jobs/00000007-digits/         a job; the number tells it from other jobs of its name
        job.json                      the job's name and id
        snapshots/                    see `snapshots/folder.py`
        log/                          see `log/`
        unlogged                      the server ran without writing events: what came after the last snapshot is lost

The name in a folder's name is for people. It is made of safe characters alone, and nothing is read from it.
"""

import fcntl
import json
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from optd_server.durability.files import make_folder, remove_folder, sync_folder, write_file
from optd_server.durability.problems import Damage, InUse, NewerFormat, NoDataDir

FORMAT = 1
"""The version of the form of the directory. A server refuses newer ones."""
log = structlog.get_logger("optd.storage")
_NUMBER = re.compile(r"\.?(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The folder of one job."""

    path: Path
    name: str
    id: str

    @property
    def log(self) -> Path:
        """Where its segments are."""
        return self.path / "log"

    @property
    def snapshots(self) -> Path:
        """Where its snapshots are."""
        return self.path / "snapshots"

    @property
    def _unlogged(self) -> Path:
        return self.path / "unlogged"

    @property
    def is_unlogged(self) -> bool:
        """Whether a server changed the job without writing events, and did not end in order."""
        return self._unlogged.exists()

    def mark_unlogged(self) -> None:
        """Record that the job changes without events from now on; raise OSError. Blocks."""
        if not self.is_unlogged:
            write_file(self._unlogged, b"")

    def unmark_unlogged(self) -> None:
        """Record that a snapshot has everything; raise OSError. Blocks."""
        if self.is_unlogged:
            self._unlogged.unlink()
            sync_folder(self.path)

    def remove(self) -> None:
        """Remove the job, whole or not at all; raise OSError. Blocks."""
        remove_folder(self.path)


class DataDir:
    """A data directory that no server but this process has, from `open` or `look` to `close`."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._jobs = path / "jobs"
        self._epochs = path / "epochs.json"
        self.incoming = path / "incoming"
        """For checkpoints that clients send."""
        self._file = path / "optd.json"
        self._making = threading.Lock()
        """Held while a job gets its number."""

    @classmethod
    def open(cls, path: Path) -> "DataDir":
        """Lock a directory, and make it if there is none; raise `InUse`, `NewerFormat`, `Damage` or OSError."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(lock, path, fcntl.LOCK_EX)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
            made = cls(path, lock)
            if made._file.exists():
                made._check_format()
            else:
                made.note_processor()
            make_folder(made._jobs)
            made._clean()
        except BaseException:
            os.close(lock)
            raise
        return made

    @classmethod
    def look(cls, path: Path, *, alone: bool = False) -> "DataDir":
        """Keep servers from a directory, and change nothing in it; several processes may look, unless one is `alone`.

        Raise `NoDataDir`, `InUse`, `NewerFormat`, `Damage` or OSError.
        """
        if not (path / "optd.json").is_file():
            what = "it has no optd.json" if path.is_dir() else "there is no such folder"
            raise NoDataDir(f"{path} is no data directory: {what}")
        try:
            lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a copy of a directory; a server that runs has a lock
            lock = None
        try:
            if lock is not None:
                _take(lock, path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            made = cls(path, lock)
            made._check_format()
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return made

    def _check_format(self) -> None:
        _known_format(self._file, _json(self._file))

    @property
    def written_by(self) -> str:
        """The kind of processor that wrote the directory."""
        return str(_json(self._file).get("processor", ""))

    def note_processor(self) -> None:
        """Record that this kind of processor writes the directory from now on; raise OSError. Blocks."""
        write_file(self._file, json.dumps({"format": FORMAT, "processor": processor()}).encode())

    def _clean(self) -> None:
        for path in self.leftovers():
            log.info("removing what a server has left that ended while it made or removed a job", path=str(path))
            remove_folder(path)
        remove_folder(self.incoming)

    def leftovers(self) -> list[Path]:
        """Return what a server has left that ended while it made or removed a job."""
        return [path for path in self._folders() if path.name.startswith(".") or _is_unmade(path)]

    def _folders(self) -> list[Path]:
        return sorted(self._jobs.iterdir()) if self._jobs.is_dir() else []

    def paths(self) -> list[Path]:
        """Return the paths of all jobs' folders, in the order in which the jobs were created."""
        left = self.leftovers()
        return [path for path in self._folders() if path not in left]

    def jobs(self) -> Iterator[JobFolder]:
        """Yield the folders of all jobs, in the order in which the jobs were created; raise `Damage`."""
        yield from map(job_at, self.paths())

    def make_job(self, name: str, id_: str) -> JobFolder:
        """Make the folder of a new job; raise OSError, and leave nothing behind that counts. Blocks."""
        label = _UNSAFE.sub("-", name)[:_LONGEST]
        with self._making:
            used = [int(found[1]) for path in self._jobs.iterdir() if (found := _NUMBER.match(path.name))]
            path = self._jobs / f"{max(used, default=0) + 1:08d}-{label}"
            path.mkdir(mode=0o700)
        folder = JobFolder(path, name, id_)
        folder.log.mkdir(mode=0o700)
        folder.snapshots.mkdir(mode=0o700)
        write_file(path / "job.json", json.dumps({"format": FORMAT, "name": name, "id": id_}).encode())
        sync_folder(self._jobs)
        return folder

    def epochs(self) -> tuple[dict[str, int], int]:
        """Return the last epochs of jobs that have ended, and the highest one of those that are forgotten."""
        if not self._epochs.exists():
            return {}, 0
        found = _json(self._epochs)
        try:
            return {name: int(last) for name, last in found["jobs"].items()}, int(found["forgotten"])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise Damage(self._epochs, 0, f"it holds no epochs: {problem!r}") from None

    def note_epochs(self, last: Mapping[str, int], forgotten: int) -> None:
        """Record what `epochs` returns later; raise OSError. Blocks."""
        write_file(self._epochs, json.dumps({"jobs": dict(last), "forgotten": forgotten}).encode())

    def close(self) -> None:
        """Let another server have the directory."""
        if self._lock is not None:
            os.close(self._lock)


def job_at(path: Path) -> JobFolder:
    """Return the job that a folder holds; raise `Damage` or `NewerFormat`."""
    found = _json(path / "job.json")
    _known_format(path / "job.json", found)
    if not isinstance(found.get("name"), str) or not isinstance(found.get("id"), str):
        raise Damage(path / "job.json", 0, "it does not name a job")
    return JobFolder(path, found["name"], found["id"])


def _is_unmade(path: Path) -> bool:
    """Return whether a folder is that of a job that never came to be: it has no name, and nothing is in it."""
    return not (path / "job.json").exists() and not any(path.glob("*/*"))


def _take(lock: int, path: Path, kind: int) -> None:
    """Lock a directory by its open lock file; raise `InUse`."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 100, 0).decode(errors="replace").strip()
        raise InUse(f"{path} is in use by another server (process {owner or 'unknown'})") from None


def _known_format(file: Path, found: Mapping[str, Any]) -> None:
    form = found.get("format")
    if not isinstance(form, int):
        raise Damage(file, 0, f"its format is {form!r}, which is no number")
    if form > FORMAT:
        raise NewerFormat(file, form, FORMAT)


def processor() -> str:
    """Return the kind of this machine's processor, for which results are the same to the bit."""
    model = ""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    return f"{platform.machine()} {model}".strip()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise Damage(path, 0, f"it cannot be read: {problem}") from None
    if not isinstance(found, dict):
        raise Damage(path, 0, "it holds no object")
    return found
