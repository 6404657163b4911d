"""`optd.local()`: a server in a process of its own, for a notebook or a test."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from optd_wire.errors import InvalidRequest, Unreachable

START_SECONDS = 30.0
STOP_SECONDS = 15.0
REFUSED = 2
"""The exit status of a server that cannot start as it was told to."""


def local(
    *arguments: str,
    data_dir: str | os.PathLike[str] | None = None,
    durability: str | None = None,
    fsync: str | None = None,
) -> "LocalServer":
    """Starts a server process on a free loopback port; `arguments` are more flags of `optd`.

    With a `data_dir` its jobs are there again in the next server on that folder. `durability` ("none", "snapshot",
    "log") and `fsync` ("interval", "commit") say what survives a crash.

    A context manager: `with optd.local() as server: optd.connect(server.address)`. Blocks until the server is ready;
    raises `InvalidRequest` if it refuses to start as it is told to, with what it says, or `Unreachable` with the last
    line of its log.
    """
    settings = {"--data-dir": data_dir, "--durability": durability, "--fsync": fsync}
    flags = [f"{flag}={os.fspath(value)}" for flag, value in settings.items() if value is not None]
    return LocalServer([*flags, *arguments])


class LocalServer:
    """A server process that ends with its `with` block, with `stop()`, or with this process."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="optd-")
        file = Path(self._scratch.name) / "address"
        self._log = Path(self._scratch.name) / "log"
        command = [
            sys.executable,
            "-m",
            "optd_server",
            "--port",
            "0",
            "--address-file",
            str(file),
            "--stop-with-stdin",
            *arguments,
        ]
        # OPTD_* settings in the environment are meant for servers that people run, not for this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTD_")}
        with self._log.open("wb") as log:
            # A new session: Ctrl-C in the terminal is for the program, which then stops the server.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # the server ends when this pipe closes, so with this process
                stdout=log,
                stderr=log,
                env=inherited,
                start_new_session=True,
            )
        try:
            self.address = self._wait_for(file)
        except BaseException:
            self.stop()
            raise

    def _wait_for(self, file: Path) -> str:
        began = time.monotonic()
        while time.monotonic() - began < START_SECONDS:
            if file.exists():
                return file.read_text().strip()
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        if self.process.poll() == REFUSED:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise InvalidRequest(
                problem=lines[-1].removeprefix("optd: ") if lines else "the server refused its settings"
            )
        words = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Unreachable(address="a local server", seconds=f"{time.monotonic() - began:.1f}", problem=words[0])

    def stop(self) -> int:
        """Stops the server as SIGTERM does; returns its exit status. Safe to call twice."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        status = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._scratch.cleanup()
        return status

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
