"""The processes of the demo: a server that keeps its job in a folder and can be killed, and workers."""

import subprocess
import sys
import threading
from queue import SimpleQueue

import digits

import optd

STOP_SECONDS = 5


class Server:
    """An `optd` process on a free port, which keeps its job in `folder`. A context manager, which ends it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._start(port="0")

    def _start(self, port: str) -> None:
        # With "commit" a step that a worker was told of survives a power cut, too.
        self._local = optd.local("--port", port, data_dir=self._folder, durability="log", fsync="commit")

    @property
    def address(self) -> str:
        """HOST:PORT, the same before and after it was killed."""
        return self._local.address

    @property
    def process(self) -> subprocess.Popen:
        """The one that runs now, or ran last."""
        return self._local.process

    def kill(self) -> None:
        """Ends it with SIGKILL: it can neither write nor say anything more."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Starts it again at the same port, in the same folder. Blocks until the job is there again."""
        self._local.stop()
        self._start(self.address.rpartition(":")[2])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._local.stop()


class Worker:
    """A process of digits.py. `events` gets (worker, line) for each line of its output, and (worker, "") at its end."""

    def __init__(self, name: str, shard: str, server: str, job: str, events: SimpleQueue) -> None:
        self.name = name
        self.last_words = "it said nothing"
        arguments = ["--server", server, "--job", job, "--worker", name, "--shard", shard, "--sync", "--json"]
        self.process = subprocess.Popen(
            [sys.executable, digits.__file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the demo, which then stops its workers
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: SimpleQueue) -> None:
        for line in self.process.stdout:
            events.put((self, line))
        events.put((self, ""))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
