"""Threads that call gRPC on behalf of the main thread.

An interrupt (Ctrl-C) is raised in the main thread, whatever that executes. Inside gRPC's Python code it may leave a
lock held, on which every later call of the connection would hang. So the main thread waits in a queue implemented in C,
which an interrupt leaves intact.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Work = tuple[Callable[[], Any], "queue.SimpleQueue[tuple[bool, Any]]"]

# The inboxes of idle threads.
_idle: list["queue.SimpleQueue[Work]"] = []


def run(work: Callable[[], T]) -> T:
    """Returns or raises what `work` does. Another thread does it for the main thread, which may be interrupted.

    Other threads do it themselves.
    """
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
    """Has another thread do `work`, and does not wait for it."""
    if not _hand_over((work, queue.SimpleQueue())):
        work()


def _hand_over(work: Work) -> bool:
    """Gives work to a thread; returns False if none can start, for instance at interpreter shutdown."""
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


# The threads do not exist in a forked child.
os.register_at_fork(after_in_child=_idle.clear)
