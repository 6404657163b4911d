"""Calls into gRPC that the main thread waits for, made by other threads.

An interrupt (Ctrl-C) is raised in the main thread, wherever that is. In gRPC's Python code it may leave a lock taken
that no call of the connection gets any more. So the main thread waits in a queue of C's instead, which is left as it
was.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Callable[[], Any], "queue.SimpleQueue[tuple[bool, Any]]"]

# Threads that have nothing to do, by where they look for work.
_idle: list["queue.SimpleQueue[Work]"] = []


def run(work: Callable[[], T]) -> T:
    """What `work` returns or raises; of the main thread another one does it, and goes on when that is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    if not _hand_over((work, answers)):
        return work()
    done, value = answers.get()
    if not done:
        raise value
    result: T = value
    return result


def begin(work: Callable[[], object]) -> None:
    """Has another thread do `work`, whatever becomes of it."""
    if not _hand_over((work, queue.SimpleQueue())):
        work()


def _hand_over(work: Work) -> bool:
    """Gives work to a thread; returns False where there is none, and none to be had, as when the program ends."""
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = queue.SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(inbox,), name="optd-calls", daemon=True).start()
        except RuntimeError:
            return False
    inbox.put(work)
    return True


def _serve(inbox: "queue.SimpleQueue[Work]") -> None:
    while True:
        work, answers = inbox.get()
        try:
            answer = True, work()
        except BaseException as problem:  # noqa: BLE001 - raised where it is waited for
            answer = False, problem
        answers.put(answer)
        del work, answers, answer
        _idle.append(inbox)


# A forked child has none of the threads.
os.register_at_fork(after_in_child=_idle.clear)
