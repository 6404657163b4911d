"""An open call of TrainingService.Step: one step after another, without the cost of a call for each."""

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

Messages = Iterator[bytes]
# A stream whose time is not up is looked at again after so many seconds at the latest.
LONGEST_SLEEP = 1.0


class StepStream:
    """A stream of steps. One step at a time; the caller sees to that.

    `begin` starts the call with an iterator of requests, as gRPC's stubs do.
    """

    def __init__(self, begin: Callable[[Messages], Any]) -> None:
        self._outbox: queue.SimpleQueue[Messages | None] = queue.SimpleQueue()
        self._problem: Exception | None = None
        self._call = begin(self._requests())
        self.late = False
        """Whether the time of a step was up, which has ended the stream."""

    @property
    def open(self) -> bool:
        """Whether the call goes on, as far as is known here."""
        return bool(self._call.is_active())

    def send(self, messages: Messages) -> None:
        """Sends messages, which are encoded one by one as the other side takes them."""
        self._outbox.put(messages)

    def receive(self, seconds: float) -> bytes | None:
        """The next message, None at the end; raises what encoding a request has raised, or gRPC's error.

        After so many seconds the stream is cancelled, and `late`.
        """
        with _watch.limiting(self, seconds):
            try:
                message: bytes | None = next(self._call, None)
            except Exception:
                if self._problem is not None:
                    raise self._problem from None
                raise
        if message is None and self._problem is not None:
            raise self._problem
        return message

    def cancel(self) -> None:
        """Ends the call at once."""
        self._outbox.put(None)
        self._call.cancel()

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


class _Limit:
    """One wait on a stream, and when it is to end."""

    def __init__(self, watch: "_Watch", stream: StepStream, until: float) -> None:
        self._watch = watch
        self._stream = weakref.ref(stream)
        self.until = until

    def __enter__(self) -> None:
        self._watch.add(self)

    def __exit__(self, *_: object) -> None:
        self._watch.remove(self)

    def expire(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.late = True
            stream.cancel()


class _Watch:
    """Cancels streams whose time is up, in one thread for all of them: gRPC has no deadline for a part of a call."""

    def __init__(self) -> None:
        self._limits: set[_Limit] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    def limiting(self, stream: StepStream, seconds: float) -> _Limit:
        """A context in which the stream has so many seconds."""
        return _Limit(self, stream, time.monotonic() + seconds)

    def add(self, limit: _Limit) -> None:
        """Begins to watch."""
        with self._changed:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="optd-deadlines", daemon=True)
                self._thread.start()
            elif limit.until < self._wakes:
                self._changed.notify()

    def remove(self, limit: _Limit) -> None:
        """Ends to watch."""
        with self._changed:
            self._limits.discard(limit)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [limit for limit in self._limits if limit.until <= now]
                self._limits.difference_update(late)
                if not late:
                    self._wakes = min([now + LONGEST_SLEEP, *(limit.until for limit in self._limits)])
                    self._changed.wait(self._wakes - now)
                    continue
            for limit in late:
                limit.expire()


_watch = _Watch()
# A forked child has none of the threads, and a lock that nobody may ever release.
os.register_at_fork(after_in_child=_watch.__init__)  # type: ignore[misc]
