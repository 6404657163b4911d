"""A slow network on one machine: a relay that lets so many bytes a second pass in each direction, and counts them."""

import socket
import threading
import time
from contextlib import suppress

CHUNK = 1 << 14


class Bucket:
    """Lets `rate` bytes a second pass, and up to `burst` at once after a pause (a token bucket)."""

    def __init__(self, rate: float, burst: int = CHUNK) -> None:
        self.passed = 0
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Blocks until `count` bytes may pass."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - count
            self._at = now
            self.passed += count
            wait = -self._tokens / self._rate
        if wait > 0:
            time.sleep(wait)


class SlowLink:
    """Forwards connections to a server; a context manager. `address` is what a worker connects to."""

    def __init__(self, target: str, bits_per_second: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.up, self.down = Bucket(bits_per_second / 8), Bucket(bits_per_second / 8)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def bytes(self) -> int:
        """All bytes that have passed since `reset`, in both directions."""
        return self.up.passed + self.down.passed

    def reset(self) -> None:
        """Begins to count anew."""
        self.up.passed = self.down.passed = 0

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for source, sink, bucket in ((client, server, self.up), (server, client, self.down)):
                    threading.Thread(target=_pump, args=(source, sink, bucket), daemon=True).start()

    def __enter__(self) -> "SlowLink":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _pump(source: socket.socket, sink: socket.socket, bucket: Bucket) -> None:
    with suppress(OSError):  # either side has closed
        while data := source.recv(CHUNK):
            bucket.take(len(data))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
