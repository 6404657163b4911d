"""One piece of work shared by several threads."""

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

    Pieces are more than threads, so that one that is held up by other programs does not hold up all. Blocks; what
    `work` raises is raised when all have stopped.

    Args:
        work: Safe to call from several threads at the same time. It should release the GIL.
        count: How much there is, mostly of elements.
        threads: At least 1.
        grain: The least that a piece holds.
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
        # One that has not begun has nothing left to do. A caller that sees an error must not have the others still
        # at work in its buffers.
        begun = [future for future in others if not future.cancel()]
        errors = [future.exception() for future in begun]
    for error in errors:
        if error is not None:
            raise error
    return results + [result for future in begun for result in future.result()]


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="optd-optim")
