"""A lock on which a forked child cannot hang."""

import os
import threading
from types import TracebackType

from optd_wire.errors import ForkedSession


class OwnedLock:
    """A reentrant lock of the process that made it; entering it in another process raises `ForkedSession`.

    A forked child has a copy of the lock. If a thread of the parent held it at the fork, no thread of the child would
    ever release the copy.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()

    def check(self) -> None:
        """Raises `ForkedSession` in another process."""
        if os.getpid() != self._process:
            raise ForkedSession(owner=self._process, process=os.getpid())

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
