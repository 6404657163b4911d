"""What the main thread waits for while others do it."""

import os
import queue
import signal
import threading

import pytest

from optd.transport import call_threads


def test_another_thread_works_for_the_main_thread_and_the_answer_comes_back():
    threads = [call_threads.run(threading.current_thread) for _ in range(3)]
    assert threading.main_thread() not in threads
    assert len(set(threads)) == 1  # which waits for more
    with pytest.raises(KeyError, match="lost"):
        call_threads.run(lambda: {}["lost"])


def test_other_threads_work_for_themselves():
    found = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: found.put(call_threads.run(threading.current_thread)))
    thread.start()
    thread.join()
    assert found.get() is thread


@pytest.mark.slow
def test_an_interrupt_ends_the_wait_and_the_next_call_finds_a_thread():
    going_on = threading.Event()

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        going_on.wait(10)

    with pytest.raises(KeyboardInterrupt):
        call_threads.run(interrupted)
    assert call_threads.run(lambda: 5) == 5
    going_on.set()


def test_work_that_nobody_waits_for_is_done():
    done = threading.Event()
    call_threads.begin(done.set)
    assert done.wait(10)


def test_where_no_thread_can_be_started_the_main_thread_works_for_itself(monkeypatch):
    """As at the end of a program, from Python 3.12 on."""

    def refuses(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(call_threads, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuses)
    assert call_threads.run(threading.current_thread) is threading.main_thread()
    done = []
    call_threads.begin(lambda: done.append(True))
    assert done
