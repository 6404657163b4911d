"""A server with a data directory, to be killed and started again at the same address."""

import socket
import time
from pathlib import Path

from optd.local import LocalServer, local


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Durable:
    """Lives until `stop`; a context manager."""

    def __init__(self, folder: Path, *flags: str, port: int | None = None) -> None:
        self.folder = folder
        self.flags = flags
        self.port = free_port() if port is None else port
        self.address = f"127.0.0.1:{self.port}"
        self.starts = 0
        self._server: LocalServer | None = None

    @property
    def server(self) -> LocalServer:
        assert self._server is not None
        return self._server

    def start(self, *more: str) -> "Durable":
        self._server = local("--data-dir", str(self.folder), "--port", str(self.port), *self.flags, *more)
        self.starts += 1
        return self

    def log(self) -> str:
        return self.server._log.read_text(errors="replace")

    def kill(self) -> None:
        """As the system does without memory: no code of the server runs any more."""
        self.server.process.kill()
        self.server.process.wait()

    def wait(self, seconds: float = 15.0) -> int:
        """Waits until the server has ended by itself, and returns its exit status."""
        return self.server.process.wait(seconds)

    def restart(self, *more: str) -> None:
        self.kill()
        self.server.stop()
        self.start(*more)

    def stop(self) -> int:
        return self.server.stop()

    def __enter__(self) -> "Durable":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()

    def wait_for_log(self, text: str, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
