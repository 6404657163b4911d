"""A TCP proxy that loses what it is told to lose: it knows HTTP/2 just well enough to find an answer."""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

BUFFER = 1 << 18
PIECE = 1 << 14
PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
DATA, HEADERS = 0, 1


class Proxy:
    """Forwards connections to a server.

    `lose_answers(n)` breaks the connection when the server's next answer to a call arrives here, n times in a row:
    the server has done what it was asked for, and the client will never know. `cut_upload(after)` breaks it in the
    middle of what the client sends, as soon as that many bytes have passed, `cut_between(messages)` where that many
    messages of the next call have. `throttle` slows one direction of all connections down.
    """

    def __init__(self, target: str) -> None:
        self._target = target.rpartition(":")[0], int(target.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._doomed_answers = 0
        self._upload_left: int | None = None
        self._messages_left: int | None = None
        self._message = b""
        self._before_cut: Callable[[], None] = lambda: None
        self._seconds_per_byte = {"up": 0.0, "down": 0.0}
        self.cuts = 0
        self.passed = 0
        """How many bytes have been passed to the server."""
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Breaks all connections now."""
        for side in tuple(self._open):
            self._close(side)

    def lose_answers(self, count: int = 1, before_cut: Callable[[], None] = lambda: None) -> None:
        """`before_cut` runs when an answer has arrived, before the client can notice that it will not get it."""
        with self._lock:
            self._doomed_answers = count
            self._before_cut = before_cut

    def cut_upload(self, after: int) -> None:
        with self._lock:
            self._upload_left = after

    def cut_between(self, messages: int) -> None:
        with self._lock:
            self._messages_left, self._message = messages, b""

    def throttle(self, *, up: float = math.inf, down: float = math.inf) -> None:
        """From here on lets pass so many bytes a second to the server, and back, on each connection."""
        self._seconds_per_byte = {"up": 1 / up, "down": 1 / down}

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                for side in (client, server):
                    # Else the buffers of this host hold megabytes of what a slow direction has yet to carry.
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                for source, sink, cut, skip, direction in (
                    (client, server, self._cut_upload, PREFACE, "up"),
                    (server, client, self._cut_answer, 0, "down"),
                ):
                    arguments = (source, sink, cut, skip, direction)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        cut: Callable[[int, bytes], bytes | None],
        skip: int,
        direction: str,
    ) -> None:
        with suppress(OSError):
            for kind, data in _frames(source, skip):
                last = cut(kind, data)
                self._send(sink, data if last is None else last, direction)
                if last is not None:
                    break
        self._close(source)
        self._close(sink)

    def _send(self, sink: socket.socket, data: bytes, direction: str) -> None:
        if not self._seconds_per_byte[direction]:
            sink.sendall(data)
            self._note(len(data), direction)
            return
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            sink.sendall(piece)
            self._note(len(piece), direction)
            time.sleep(len(piece) * self._seconds_per_byte[direction])

    def _note(self, count: int, direction: str) -> None:
        if direction == "up":
            with self._lock:
                self.passed += count

    # What of a frame still passes before the connection is cut; None where it is not cut here.

    def _cut_answer(self, kind: int, data: bytes) -> bytes | None:
        with self._lock:
            # On a stream that stays open only the first answer comes with headers.
            if kind not in (HEADERS, DATA) or not self._doomed_answers:
                return None
            self._doomed_answers -= 1
            self.cuts += 1
            self._before_cut()
            return b""

    def _cut_upload(self, kind: int, data: bytes) -> bytes | None:
        with self._lock:
            if kind != DATA:
                return None
            if self._upload_left is not None:
                self._upload_left -= len(data)
                if self._upload_left <= 0:
                    self._upload_left = None
                    self.cuts += 1
                    return b""
            if self._messages_left is not None:
                return self._cut_message(data[:9], data[9:])
            return None

    def _cut_message(self, header: bytes, payload: bytes) -> bytes | None:
        """Counts gRPC's messages: a byte of flags, four of length, and as many as these say."""
        self._message += payload
        while len(self._message) >= 5 and len(self._message) >= (size := 5 + int.from_bytes(self._message[1:5], "big")):
            self._message = self._message[size:]
            self._messages_left = (self._messages_left or 0) - 1
            if self._messages_left <= 0:
                self._messages_left = None
                self.cuts += 1
                passing = payload[: len(payload) - len(self._message)]
                # The flags are those of a frame that ends nothing.
                return len(passing).to_bytes(3, "big") + header[3:4] + b"\0" + header[5:] + passing
        return None

    def _close(self, side: socket.socket) -> None:
        """Ends a side as the death of its process does: what has been forwarded arrives, nothing else does."""
        self._open.discard(side)
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
        side.close()


def _frames(source: socket.socket, skip: int) -> Iterator[tuple[int, bytes]]:
    """The frames of one direction (RFC 9113, 4.1), whole, with their types; a client's preface first, as type -1."""
    held = b""
    while data := source.recv(65536):
        held += data
        if skip and len(held) >= skip:
            yield -1, held[:skip]
            held, skip = held[skip:], 0
        while not skip and len(held) >= 9 and len(held) >= (size := 9 + int.from_bytes(held[:3], "big")):
            yield held[3], held[:size]
            held = held[size:]
