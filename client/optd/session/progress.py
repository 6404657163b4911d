"""Tells people that a large model is on its way: a bar on a terminal, lines of the log elsewhere.

Only what takes longer than a second is told. Elements are counted as they pass in frames; those in shared memory do not
pass, and of these only the time is told.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from optd_wire.values import GroupInfo, GroupSpec

logger = logging.getLogger("optd")

LEAST = 4 << 20
"""Elements; what moves fewer is over in no time, and is not watched."""
PATIENCE_SECONDS = 1.0
FIRST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 5.0, 60.0
TICK_SECONDS = 0.2

F = TypeVar("F", bound=Sequence[Any])


def elements_of(groups: Iterable[GroupSpec | GroupInfo]) -> int:
    """How many elements the parameters of groups have."""
    return sum(parameter.size for group in groups for parameter in group.parameters)


class Count:
    """How many elements have passed. Counted by one thread, looked at by another."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.passed = 0

    def source(self, source: Callable[[], Iterator[F]]) -> Callable[[], Iterator[F]]:
        """A source that counts what it gives, anew with each attempt."""

        def counted() -> Iterator[F]:
            self.passed = 0
            for batch in source():
                yield batch
                self.passed += sum(frame.count for frame in batch)

        return counted

    def sink(self, sink: Callable[[F], None]) -> Callable[[F], None]:
        """A sink that counts what it is given."""

        def counted(frames: F) -> None:
            sink(frames)
            self.passed += sum(frame.count for frame in frames)

        return counted


def showing(what: str, total: int, *, enabled: bool) -> AbstractContextManager[Count]:
    """Shows what the block has counted of `total` elements, once it has taken a second; `what` says what it does.

    May be used from several threads at once. Never raises anything of its own.
    """
    count = Count(total)
    return _watching(what, count) if enabled and total >= LEAST else nullcontext(count)


@contextmanager
def _watching(what: str, count: Count) -> Iterator[Count]:
    done = threading.Event()
    began = time.monotonic()
    watcher = threading.Thread(target=_watch, args=(what, count, done, began), name="optd-progress", daemon=True)
    try:
        watcher.start()
    except RuntimeError:  # no thread is to be had, as when the program ends
        yield count
        return
    try:
        yield count
    finally:
        done.set()
        watcher.join()


def _watch(what: str, count: Count, done: threading.Event, began: float) -> None:
    if done.wait(PATIENCE_SECONDS):
        return
    if sys.stderr is not None and sys.stderr.isatty():
        _draw(what, count, done)
    else:
        _log(what, count, done, began)


def _draw(what: str, count: Count, done: threading.Event) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, shown="")
        while not done.wait(TICK_SECONDS):
            # Before anything has passed, and when all has and the server is at it, the bar moves to and fro.
            moving = 0 < count.passed < count.total
            total = count.total if moving else None
            bar.update(task, total=total, completed=count.passed, shown=_passed(count))


def _log(what: str, count: Count, done: threading.Event, began: float) -> None:
    interval = FIRST_INTERVAL_SECONDS
    _say(f"{what}: {_passed(count)}, this takes a while")
    while not done.wait(interval):
        _say(f"{what}: {_passed(count)} after {time.monotonic() - began:.0f} s")
        interval = min(2 * interval, LONGEST_INTERVAL_SECONDS)
    _say(f"{what}: ended after {time.monotonic() - began:.1f} s")


def _passed(count: Count) -> str:
    total = f"{count.total / 1e6:,.0f} M numbers"
    return f"{total}" if not count.passed else f"{min(count.passed, count.total) / 1e6:,.0f} of {total}"


def _say(line: str) -> None:
    """To the log; where a program has set none up, to stderr, as Python does with warnings."""
    if logger.hasHandlers():
        logger.info(line)
    elif sys.stderr is not None:
        sys.stderr.write(line + "\n")
