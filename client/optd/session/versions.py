"""The versions of a job as they come: `for version in session.versions()`."""

import threading
import weakref
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import Self

from optd.session.retry import with_retries
from optd.transport.calls.training import VersionWatch
from optd_wire.errors import ConnectionLost, OptdError, Stalled, TooManyRequests


class Versions:
    """An iterator over the versions of a job: the current one, and then the newest one whenever it has changed.

    A thread of its own listens to the server, so whoever is slow skips versions, and none pile up. After a lost
    connection or a restart of the server it listens again by itself. A version that is lower than the one before says
    that the job went back to it. Ends with `close`, as a context manager, or when it is garbage. Iterate in one thread.
    """

    def __init__(self, listening: "Listening") -> None:
        self._listening = listening
        self._seen = 0
        self._end = weakref.finalize(self, listening.close)

    @property
    def newest(self) -> int | None:
        """The newest version that is known here; None before the server has told of one."""
        return self._listening.newest

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        """Blocks until there is a version that was not returned yet.

        Raises `UnknownJob` when the job is deleted, `Unreachable` if the server is away for longer than the session's
        `timeout`, or `SessionClosed`.
        """
        version, self._seen = self._listening.next_after(self._seen)
        if version is None:
            raise StopIteration
        return version

    def close(self) -> None:
        """Ends the iteration, also one that blocks in another thread."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Listening:
    """The thread that listens. It does not refer to the iterator, so that the iterator's end can end it.

    `watch` opens a stream, given the version that is known; `check` raises if the session is of no more use.
    """

    def __init__(
        self,
        watch: Callable[[int | None], VersionWatch],
        check: Callable[[], None],
        address: str,
        timeout: float,
        tell_of_loss: Callable[[OptdError], None],
        known: int | None,
    ) -> None:
        self.newest = known
        self._check = check
        self._open = watch
        self._address = address
        self._timeout = timeout
        self._tell_of_loss = tell_of_loss
        self._watch: VersionWatch | None = None
        self._told = threading.Condition()
        self._count = 0
        """How many versions the server has told of."""
        self._error: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="optd-versions", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    def next_after(self, seen: int) -> tuple[int | None, int]:
        """Blocks until more than `seen` versions were told; returns the newest, None after `close`, and their count."""
        self._check()
        with self._told:
            self._told.wait_for(lambda: self._count > seen or self._error is not None or self._stopped.is_set())
            if self._stopped.is_set():
                return None, seen
            if self._count > seen:
                return self.newest, self._count
            assert self._error is not None
            raise copy(self._error) if isinstance(self._error, OptdError) else self._error

    def close(self) -> None:
        """Ends the thread; does not wait for it."""
        self._stopped.set()
        with self._told:
            self._told.notify_all()
        watch = self._watch  # the thread may drop it meanwhile
        if watch is not None:
            watch.cancel()

    def _listen(self) -> None:
        try:
            while not self._stopped.is_set():
                version = with_retries(
                    self._receive,
                    address=self._address,
                    timeout=self._timeout,
                    on_first_loss=self._note_loss,
                    sleep=self._pause,
                )
                with self._told:
                    if version is not None:
                        self.newest, self._count = version, self._count + 1
                    self._told.notify_all()
        except Exception as error:  # noqa: BLE001 - the iterator raises it
            with self._told:
                self._error = error
                self._told.notify_all()

    def _receive(self, left: float) -> int | None:
        """The next version; None after `close`."""
        self._check()
        if self._watch is None:
            self._watch = self._open(self.newest)
        if self._stopped.is_set():
            self._watch.cancel()
            return None
        try:
            return self._watch.receive().version
        except (Stalled, TooManyRequests) as error:  # the process was suspended, or the server has too much to do
            self._watch = None
            lost = ConnectionLost(address=self._address, rpc="WatchVersions", problem=str(error))
            lost.retry_after = error.retry_after
            raise lost from None
        except BaseException:
            self._watch = None
            raise

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _note_loss(self, error: OptdError) -> None:
        if not self._stopped.is_set():
            self._tell_of_loss(error)
