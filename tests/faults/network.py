"""A network of its own for a worker: a namespace on the other end of a virtual cable, which a test can pull out."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

_numbers = count()


class Cable:
    """Connects this host, as `host`, with a namespace. `prefix` runs a command in the namespace."""

    def __init__(self) -> None:
        number = os.getpid() * 8 + next(_numbers) % 8
        net = f"10.{64 + number // 16384 % 64}.{number // 64 % 256}"
        last = number % 64 * 4
        self.host, self.guest = f"{net}.{last + 1}", f"{net}.{last + 2}"
        self.namespace = f"optd-{uuid.uuid4().hex[:8]}"
        self._end = self.namespace.replace("optd-", "optd")
        self.prefix = ("ip", "netns", "exec", self.namespace)

    def make(self) -> None:
        """Makes namespace and cable; raises `CalledProcessError` where that is not permitted."""
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._end, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("addr", "add", f"{self.host}/30", "dev", self._end)
        _ip("link", "set", self._end, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.guest}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")

    def remove(self) -> None:
        """Ends both; the processes in it go on without a network."""
        subprocess.run(["ip", "link", "del", self._end], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)

    def pull_out(self) -> None:
        """From here on packets vanish in both directions, and nobody is told."""
        _ip("link", "set", self._end, "down")

    def plug_in(self) -> None:
        """Packets get through again."""
        _ip("link", "set", self._end, "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """A new cable; skips the test where no namespaces may be made."""
    made = Cable()
    try:
        try:
            made.make()
        except (OSError, subprocess.CalledProcessError) as problem:
            told = getattr(problem, "stderr", b"") or str(problem).encode()
            pytest.skip(f"no network namespaces here: {told.decode().strip()}")
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)
