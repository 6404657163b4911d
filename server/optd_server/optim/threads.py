"""Share one piece of work between several threads."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

GRAIN = 65_536
"""Elements below which a second thread costs more than it saves."""


def share(work: Callable[[int, int], T], count: int, threads: int, *, grain: int = GRAIN, unit: int = 1024) -> list[T]:
    """Call ``work(first, last)`` until all of 0 … `count` is done, on up to `threads` threads, this one included.

    There are more pieces than threads, so that a thread that other programs hold up does not hold up all. Blocks. An
    exception of `work` is raised when all threads have stopped.

    Args:
        work: Safe to call from several threads at the same time. It should release the GIL.
        count: The amount of work, usually a number of elements.
        threads: At least 1.
        grain: The smallest size of a piece.
        unit: Pieces begin at multiples of it.
    """
    pieces = min(count // grain, 4 * threads)
    if threads == 1 or pieces < 2:
        return [work(0, count)]
    size = -(-count // (pieces * unit)) * unit
    todo = deque(range(0, count, size))

    def run() -> list[T]:
        done: list[T] = []
        while True:
            try:
                first = todo.popleft()
            except IndexError:
                return done
            done.append(work(first, min(first + size, count)))

    others = [_pool(threads - 1).submit(run) for _ in range(min(threads, len(todo)) - 1)]
    try:
        results = run()
    finally:
        # A future that has not begun has nothing left to do. After an error, no thread may still work in the
        # caller's buffers.
        begun = [future for future in others if not future.cancel()]
        errors = [future.exception() for future in begun]
    for error in errors:
        if error is not None:
            raise error
    return results + [result for future in begun for result in future.result()]


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="optd-optim")
