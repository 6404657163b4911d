"""Shows the progress of long transfers: a bar on a terminal, lines of the log elsewhere.

Nothing is shown in the first second. Elements are counted as they pass in frames; for shared memory, in which no frames
pass, only the time is shown.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from optd.session.saying import say
from optd_wire.values import GroupInfo, GroupSpec

LEAST = 4 << 20
"""Elements; transfers of fewer are not watched."""
PATIENCE_SECONDS = 1.0
FIRST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 5.0, 60.0
TICK_SECONDS = 0.2

F = TypeVar("F", bound=Sequence[Any])


def elements_of(groups: Iterable[GroupSpec | GroupInfo]) -> int:
    """How many elements the parameters of groups have."""
    return sum(parameter.size for group in groups for parameter in group.parameters)


class Count:
    """How many elements have passed. One thread counts, another one reads."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.passed = 0

    def source(self, source: Callable[[], Iterator[F]]) -> Callable[[], Iterator[F]]:
        """A source that counts its elements; the count restarts with each attempt."""

        def counted() -> Iterator[F]:
            self.passed = 0
            for batch in source():
                yield batch
                self.passed += sum(frame.count for frame in batch)

        return counted

    def sink(self, sink: Callable[[F], None]) -> Callable[[F], None]:
        """A sink that counts the elements that it takes."""

        def counted(frames: F) -> None:
            sink(frames)
            self.passed += sum(frame.count for frame in frames)

        return counted


def showing(what: str, total: int, *, enabled: bool) -> AbstractContextManager[Count]:
    """Shows how many of `total` elements the block has counted, after its first second; `what` names its work.

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
    except RuntimeError:  # no thread can start, for instance at interpreter shutdown
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
            # Without a total the bar pulses: before the first element, and after the last while the server works.
            moving = 0 < count.passed < count.total
            total = count.total if moving else None
            bar.update(task, total=total, completed=count.passed, shown=_passed(count))


def _log(what: str, count: Count, done: threading.Event, began: float) -> None:
    interval = FIRST_INTERVAL_SECONDS
    say(f"{what}: {_passed(count)}, this takes a while")
    while not done.wait(interval):
        say(f"{what}: {_passed(count)} after {time.monotonic() - began:.0f} s")
        interval = min(2 * interval, LONGEST_INTERVAL_SECONDS)
    say(f"{what}: ended after {time.monotonic() - began:.1f} s")


def _passed(count: Count) -> str:
    total = f"{count.total / 1e6:,.0f} M numbers"
    return f"{total}" if not count.passed else f"{min(count.passed, count.total) / 1e6:,.0f} of {total}"
