"""Syncs the logs of all jobs: one thread, which serves everything that waits with one sync of each file."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

THREADS = 8
"""How many files are synced at the same time. The disk serves them together."""


class Synced(Protocol):
    """A file that can be synced. `sync` blocks; it says itself who need not wait any more."""

    def sync(self) -> None:
        """Sync everything that was written before the call; raise OSError."""


class Syncer:
    """Calls `sync` of every file that asked for it: at once, or at the next tick of the interval."""

    def __init__(self, interval_seconds: float, failed: Callable[[Exception], None]) -> None:
        self._interval = interval_seconds
        self._failed = failed
        self._changed = threading.Condition()
        self._soon: set[Synced] = set()
        self._at_tick: set[Synced] = set()
        self._closed = False
        self._pool = ThreadPoolExecutor(THREADS, "optd-sync")
        self._thread = threading.Thread(target=self._run, name="optd-syncer", daemon=True)
        self._thread.start()

    def ask(self, file: Synced) -> None:
        """Have a file synced as soon as the syncs that are running now have ended."""
        with self._changed:
            self._soon.add(file)
            self._changed.notify()

    def note(self, file: Synced) -> None:
        """Have a file synced at the next tick."""
        if file not in self._at_tick:
            with self._changed:
                self._at_tick.add(file)

    def forget(self, file: Synced) -> None:
        """Drop what a file has asked for."""
        with self._changed:
            self._soon.discard(file)
            self._at_tick.discard(file)

    def close(self) -> None:
        """End the thread. Files that wait for a tick are not synced any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        tick = time.monotonic() + self._interval
        while True:
            with self._changed:
                if not self._soon and not self._closed:
                    self._changed.wait(max(0.0, tick - time.monotonic()))
                if self._closed:
                    return
                due, self._soon = self._soon, set()
                if time.monotonic() >= tick:
                    due, self._at_tick = due | self._at_tick, set()
                    tick = time.monotonic() + self._interval
            if len(due) == 1:
                self._sync(next(iter(due)))
            elif due:
                wait([self._pool.submit(self._sync, file) for file in due])

    def _sync(self, file: Synced) -> None:
        try:
            file.sync()
        except Exception as problem:  # noqa: BLE001 - the server ends: nobody may be told that the file is durable
            self._failed(problem)
