"""The log of a running job: takes its events, writes them, and says what is durable."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from optd_server.durability.files import disk_full, is_full
from optd_server.durability.log.framing import HEADER, aligned
from optd_server.durability.log.scan import Tail, first_event_of, segment_paths
from optd_server.durability.log.segment import Parts, Segment, length_of
from optd_server.durability.log.syncer import Syncer

SMALLEST, LARGEST = 1 << 18, 64 << 20
"""Bytes of a segment: the first one of a job, and the largest. Each one is twice the size of the one before it."""
LARGE_EVENTS, LARGEST_OF_LARGE = 8, 1 << 30
"""A segment for an event that is too large for the next size has room for so many of them, up to so many bytes."""
INLINE_BYTES = 1 << 18
"""Larger events are written in another thread. Smaller ones take less time than a change of threads."""


@dataclass(slots=True)
class _Waiting:
    event: int
    future: asyncio.Future[None]


class LogWriter:
    """Appends events to the log of one job. Lives on one event loop; `sync` may be called by any thread.

    `failed` is called with an error of the disk other than one of its being full; it ends the server.
    """

    def __init__(
        self,
        folder: Path,
        tail: Tail,
        *,
        syncer: Syncer,
        executor: Executor,
        commits: bool,
        failed: Callable[[Exception], None],
    ) -> None:
        self.event, self.version = tail.event, tail.version
        """The last event that was appended, and the version after it."""
        self.synced_event, self.synced_version = tail.event, tail.version
        """The last event that survives a power cut, and the version after it."""
        self.bytes = 0
        """Bytes that were written since the last snapshot."""
        self._folder = folder
        self._chain = tail.chain
        self._syncer = syncer
        self._executor = executor
        self._commits = commits
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._segment: Segment | None = None
        self._next_size = SMALLEST
        self._unsynced: deque[tuple[int, int]] = deque()
        """The steps that were appended and are not synced: the event of each, and the version that it leads to."""
        self._waiting: list[_Waiting] = []
        self._file = threading.Lock()
        """Held while the segment is written, synced or replaced."""
        self._marked = tail.event
        """How far the log itself says that it is synced."""
        self._taken_back = 0
        """How often an event was taken back."""

    async def append(self, parts: Parts, version: int) -> int:
        """Write an event, and return its number; raise `DiskFull`, and then nothing was written."""
        length = length_of(parts)
        segment = self._segment
        if segment is not None and length <= INLINE_BYTES and segment.has_room(length) and self._file.acquire(False):
            try:
                self._write(parts, version)
            finally:
                self._file.release()
        else:
            await self._loop.run_in_executor(self._executor, self._write_large, parts, length, version)
        if version > (self._unsynced[-1][1] if self._unsynced else self.synced_version):
            self._unsynced.append((self.event, version))
        self._syncer.note(self)
        return self.event

    def _write_large(self, parts: Parts, length: int, version: int) -> None:
        with self._file:
            if self._segment is None or not self._segment.has_room(length):
                self._begin_segment(length)
            self._write(parts, version)

    def _write(self, parts: Parts, version: int) -> None:
        assert self._segment is not None
        try:
            self._segment.append(parts, event=self.event + 1, version=version, synced=self.synced_event)
        except OSError as problem:
            raise self._refused(problem) from None
        self.bytes += length_of(parts)
        self.event, self.version, self._marked = self.event + 1, version, self.synced_event

    def _begin_segment(self, length: int) -> None:
        """Finish the segment, and begin one that has room for an event of this length."""
        needed = HEADER + HEADER + aligned(length) + HEADER
        try:
            if self._segment is not None and self._segment.first_event > self.event:
                # It holds no event, so the one that follows has its name.
                self._chain = self._segment.follows
                self._segment.remove()
                self._segment = None
            if self._segment is not None:
                # First, so that only the last segment of a log can have a torn tail.
                self._segment.sync()
        except OSError as problem:
            self._failed(problem)
        try:
            # Each change of segments waits for the disk, so several large events share one.
            following = self._new_segment(self._size_for(needed))
        except OSError as problem:
            if not is_full(problem):
                raise self._refused(problem) from None
            try:
                following = self._new_segment(needed)
            except OSError as again:
                raise self._refused(again) from None
        if self._segment is not None:
            try:
                self._segment.finish()
            except OSError as problem:
                self._failed(problem)
        self._segment = following
        self._next_size = min(2 * self._next_size, LARGEST)

    def _size_for(self, needed: int) -> int:
        if needed <= self._next_size:
            return self._next_size
        return max(needed, min(LARGE_EVENTS * needed, LARGEST_OF_LARGE))

    def _new_segment(self, size: int) -> Segment:
        chain = self._chain if self._segment is None else self._segment.chain
        return Segment(self._folder, first_event=self.event + 1, version=self.version, chain=chain, size=size)

    def _refused(self, problem: OSError) -> Exception:
        if is_full(problem):
            return disk_full(problem, self._folder)
        self._failed(problem)
        return problem

    def take_back(self, version: int) -> None:
        """Remove the last event, which could not be applied; `version` is the job's version before it."""
        assert self._segment is not None
        with self._file:
            try:
                self._segment.take_back()
            except OSError as problem:
                self._failed(problem)
            self.event, self.version = self.event - 1, version
            self._taken_back += 1
            self._marked = min(self._marked, self.event)
            self.synced_event = min(self.synced_event, self.event)
        while self._unsynced and self._unsynced[-1][0] > self.event:
            self._unsynced.pop()

    # What is durable

    async def wait(self, event: int) -> None:
        """Wait until an event is as durable as the log makes it: written, or with commits synced."""
        if self._commits and event > self.synced_event:
            await self.wait_synced(event)

    async def wait_synced(self, event: int) -> None:
        """Have the log synced now, and wait until an event survives a power cut."""
        if event <= self.synced_event:
            return
        waiting = _Waiting(event, self._loop.create_future())
        self._waiting.append(waiting)
        self._syncer.ask(self)
        try:
            await waiting.future
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def sync(self) -> None:
        """Sync all that was appended before; raise OSError. Blocks; called by the syncer."""
        with self._file:
            if self._segment is None:
                return
            event, taken_back = self.event, self._taken_back
            if event <= self.synced_event:
                self._mark(self._segment)
                return
            # Steps go on while this one syncs, and may begin another segment meanwhile.
            descriptor = os.dup(self._segment.descriptor)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._loop.call_soon_threadsafe(self._note_synced, event, taken_back)

    def _mark(self, segment: Segment) -> None:
        """Write how far the log is synced, unless a record says so.

        Damage to its last event then cannot pass for a torn one.
        """
        if self._marked < self.event and segment.has_room(0):
            segment.mark(event=self.event, version=self.version, synced=self.event)
            self._marked = self.event

    def _note_synced(self, event: int, taken_back: int) -> None:
        if taken_back != self._taken_back:
            self._syncer.ask(self)  # the event of this number may be another one by now
            return
        while self._unsynced and self._unsynced[0][0] <= event:
            self.synced_version = self._unsynced.popleft()[1]
        self.synced_event = max(self.synced_event, event)
        self._wake()
        if self._marked < self.event:
            self._syncer.note(self)

    def _wake(self) -> None:
        for waiting in [each for each in self._waiting if each.event <= self.synced_event]:
            self._waiting.remove(waiting)
            if not waiting.future.done():
                waiting.future.set_result(None)

    # Segments

    def drop_before(self, event: int) -> None:
        """Remove the segments that hold only events up to this one; raise OSError. Blocks."""
        paths = segment_paths(self._folder)
        for path, following in pairwise(paths):
            if first_event_of(following) <= event + 1:
                path.unlink()

    def close(self) -> None:
        """Sync and close the log. Blocks."""
        self._syncer.forget(self)
        with self._file:
            if self._segment is not None:
                try:
                    self._segment.finish()
                except OSError as problem:
                    self._failed(problem)
                self._segment = None
        self.synced_event, self.synced_version = self.event, self.version
        self._loop.call_soon_threadsafe(self._wake)
