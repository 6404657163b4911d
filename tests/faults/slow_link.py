"""A TCP relay that passes only so many bytes a second: a slow link between hosts, on one machine."""

import socket
import threading
import time
from contextlib import suppress
from typing import Self

CHUNK = 4096
SOCKET_BUFFER = 32 << 10


class Bucket:
    """Lets `rate` bytes a second pass in one direction, whatever connection they belong to."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self.passed = 0

    def take(self, count: int) -> None:
        """Blocks until the link has passed as many bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            self.passed += count
            due = self._free_at
        time.sleep(max(0.0, due - now))


class SlowLink:
    """Forwards connections to a server through one bucket for each direction.

    Its sockets have small buffers, so that bytes queue at their sender, as they do at the entry of a slow link.
    """

    def __init__(self, target: str, *, bits_per_second: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.up, self.down = Bucket(bits_per_second / 8), Bucket(bits_per_second / 8)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for side in tuple(self._open):
            self._close(side)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.socket()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
                server.connect(self._target)
                self._open |= {client, server}
                for source, sink, bucket in ((client, server, self.up), (server, client, self.down)):
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
                    threading.Thread(target=self._pump, args=(source, sink, bucket), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, bucket: Bucket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                bucket.take(len(data))
                sink.sendall(data)
        self._close(source)
        self._close(sink)

    def _close(self, side: socket.socket) -> None:
        self._open.discard(side)
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
        side.close()
