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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optd_server.durability.files import make_folder, remove_folder, sync_folder, write_file
from optd_server.durability.problems import Damage, InUse, NewerFormat, StorageProblem

FORMAT = 1
"""The version of the form of the directory. A server refuses newer ones."""
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
    """A data directory that this process has alone, from `open` to `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._jobs = path / "jobs"
        self._epochs = path / "epochs.json"
        self.incoming = path / "incoming"
        """For checkpoints that clients send."""

    @classmethod
    def open(cls, path: Path) -> "DataDir":
        """Lock a directory, and make it if there is none; raise `InUse`, `NewerFormat`, `Damage` or OSError."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 100, 0).decode(errors="replace").strip()
            os.close(lock)
            raise InUse(f"{path} is in use by another server (process {owner or 'unknown'})") from None
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
            made = cls(path, lock)
            made._check_format()
            make_folder(made._jobs)
            made._clean()
        except BaseException:
            os.close(lock)
            raise
        return made

    def _check_format(self) -> None:
        file = self.path / "optd.json"
        if not file.exists():
            write_file(file, json.dumps({"format": FORMAT, "processor": processor()}).encode())
            return
        found = _json(file)
        if found.get("format", 0) > FORMAT:
            raise NewerFormat(file, found["format"], FORMAT)

    @property
    def written_by(self) -> str:
        """The kind of processor that wrote the directory."""
        return str(_json(self.path / "optd.json").get("processor", ""))

    def note_processor(self) -> None:
        """Record that this kind of processor writes the directory from now on; raise OSError. Blocks."""
        write_file(self.path / "optd.json", json.dumps({"format": FORMAT, "processor": processor()}).encode())

    def _clean(self) -> None:
        """Remove what a server has left that ended while it made or removed a job."""
        for path in self._jobs.iterdir():
            if path.name.startswith(".") or not (path / "job.json").exists():
                remove_folder(path)
        remove_folder(self.incoming)

    def jobs(self) -> Iterator[JobFolder]:
        """Yield the folders of all jobs, in the order in which the jobs were created; raise `Damage`."""
        for path in sorted(self._jobs.iterdir()):
            found = _json(path / "job.json")
            if not isinstance(found.get("name"), str) or not isinstance(found.get("id"), str):
                raise Damage(path / "job.json", 0, "it does not name a job")
            yield JobFolder(path, found["name"], found["id"])

    def make_job(self, name: str, id_: str) -> JobFolder:
        """Make the folder of a new job; raise OSError, and leave nothing behind that counts. Blocks."""
        used = [int(path.name.partition("-")[0].lstrip(".") or 0) for path in self._jobs.iterdir()]
        label = _UNSAFE.sub("-", name)[:_LONGEST]
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
        return dict(found.get("jobs", {})), int(found.get("forgotten", 0))

    def note_epochs(self, last: Mapping[str, int], forgotten: int) -> None:
        """Record what `epochs` returns later; raise OSError. Blocks."""
        write_file(self._epochs, json.dumps({"jobs": dict(last), "forgotten": forgotten}).encode())

    def close(self) -> None:
        """Let another server have the directory."""
        os.close(self._lock)


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
        raise StorageProblem(f"{path} holds no object")
    return found
