"""An open call of TrainingService.Step: one step after another, without the cost of a call for each."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from optd.transport import call_threads

Messages = Iterator[bytes]
CLOSING_SECONDS = 2.0


class StepStream:
    """A stream of steps. One step at a time; the caller sees to that.

    `begin` starts the call with an iterator of requests, as gRPC's stubs do. A thread of the stream's own reads what
    comes, a message ahead of who receives it: so it learns at once of an end, and interrupts stay out of gRPC (see
    `call_threads`).
    """

    def __init__(self, begin: Callable[[Messages], Any]) -> None:
        self._outbox: queue.SimpleQueue[Messages | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._problem: Exception | None = None
        self._call: Any = None
        self._is_over = False
        self.late = False
        """Whether the time of a step was up, which has ended the stream."""
        self._reader = threading.Thread(target=self._read, args=(begin,), name="optd-steps", daemon=True)
        self._reader.start()

    @property
    def open(self) -> bool:
        """Whether the call goes on, as far as is known here."""
        return not self._is_over

    def send(self, messages: Messages) -> None:
        """Sends messages, which are encoded one by one as the other side takes them."""
        self._outbox.put(messages)

    def receive(self, seconds: float) -> bytes | None:
        """The next message, None at the end; raises what encoding a request has raised, or gRPC's error.

        After so many seconds the stream is cancelled, and `late`: None, too.
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
        self._inbox.put(found)  # for whoever asks again
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
        """As `cancel`, and waits until no thread is at it: what one has of gRPC a program that ends would wait for."""
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
        except Exception as error:  # noqa: BLE001 - raised where a message is waited for
            end = error
        self._is_over = True
        self._inbox.put(end)

    def _requests(self) -> Iterator[bytes]:
        """In a thread of gRPC's: what it raises would be lost there."""
        while True:
            messages = self._outbox.get()
            if messages is None:
                return
            try:
                yield from messages
            except Exception as problem:  # noqa: BLE001 - raised where the step is waited for
                self._problem = problem
                return
