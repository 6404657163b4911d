"""Processes to stop and to kill, and waiting for what follows."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
HERE = Path(__file__).parent
SECONDS = 15.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.005)


def in_background(function: Callable[[], T]) -> "Future[T]":
    """Runs in a thread that nothing has to wait for at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def spawned(script: str, *arguments: str, prefix: Sequence[str] = ()) -> Iterator["subprocess.Popen[str]"]:
    """A script of this folder as a process, which does not outlive the block; `prefix` is a command that runs it."""
    process = subprocess.Popen(
        [*prefix, sys.executable, str(HERE / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


class Worker:
    """A `worker.py` that runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, do: str, **more: Any) -> None:
        """Gives a command and does not wait for its outcome."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")

    def outcome(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        self.tell(do, **more)
        return self.outcome()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def worker(
    address: str, job: str, name: str, sync_workers: int = 0, *, prefix: Sequence[str] = (), **more: Any
) -> Iterator[Worker]:
    """A worker in a process of its own, which has registered; `more` are the options of `worker.py`."""
    arguments = [address, job, name] + ([str(sync_workers)] if sync_workers else [])
    options = [f"--{option}={value}" for option, value in more.items()]
    with spawned("worker.py", *options, *arguments, prefix=prefix) as process:
        made = Worker(process)
        made.ask("register")
        yield made
