"""A gRPC stream that carries one step after another, as bytes, without the cost of a call for each."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from optd.transport import call_threads

Messages = Iterator[bytes]
CLOSING_SECONDS = 2.0


class StepStream:
    """A stream of steps. The caller sends one step at a time.

    `begin` starts the call with an iterator of requests, as gRPC's stubs do. A thread of the stream reads the answers,
    one message ahead of the caller: so the stream learns at once when the call ends, and interrupts stay out of gRPC
    (see `call_threads`).
    """

    def __init__(self, begin: Callable[[Messages], Any]) -> None:
        self._outbox: queue.SimpleQueue[Messages | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._problem: Exception | None = None
        self._call: Any = None
        self._is_over = False
        self.late = False
        """Whether the stream was ended because a step took too long."""
        self._reader = threading.Thread(target=self._read, args=(begin,), name="optd-steps", daemon=True)
        self._reader.start()

    @property
    def open(self) -> bool:
        """Whether the call goes on, as far as is known here."""
        return not self._is_over

    def send(self, messages: Messages) -> None:
        """Sends messages, which are encoded one by one as gRPC takes them."""
        self._outbox.put(messages)

    def receive(self, seconds: float) -> bytes | None:
        """The next message, None at the end; raises what the encoding of a request has raised, or gRPC's error.

        After `seconds` it cancels the stream, sets `late` and returns None.
        """
        try:
            found = self._inbox.get(timeout=max(seconds, 0))
        except queue.Empty:
            self.late = True
            self.cancel()
            return None
        if isinstance(found, bytes):
            self._taken.put(None)
            return found
        self._inbox.put(found)  # for the next call
        if self._problem is not None:
            raise self._problem from None
        if found is not None:
            raise found
        return None

    def cancel(self) -> None:
        """Ends the call at once."""
        self._end()
        call_threads.begin(self._cancel_call)

    def close(self) -> None:
        """As `cancel`; also joins the reader thread, which would otherwise delay interpreter exit."""
        self._end()
        call_threads.run(self._cancel_call)
        self._reader.join(CLOSING_SECONDS)

    def _end(self) -> None:
        self._is_over = True
        self._outbox.put(None)
        self._taken.put(None)

    def _cancel_call(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _read(self, begin: Callable[[Messages], Any]) -> None:
        end: Exception | None = None
        try:
            self._call = begin(self._requests())
            if self._is_over:
                self._call.cancel()
            while (message := next(self._call, None)) is not None:
                self._inbox.put(message)
                self._taken.get()
        except Exception as error:  # noqa: BLE001 - raised by `receive`
            end = error
        self._is_over = True
        self._inbox.put(end)

    def _requests(self) -> Iterator[bytes]:
        """Runs in a thread of gRPC, which would drop what it raises."""
        while True:
            messages = self._outbox.get()
            if messages is None:
                return
            try:
                yield from messages
            except Exception as problem:  # noqa: BLE001 - raised where the step is waited for
                self._problem = problem
                return
