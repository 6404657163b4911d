"""Other processes of a row: each serves requests of the harness until it is closed, or the harness is gone."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import perf_counter
from typing import Any

import numpy as np

from bench.row import NotAvailable, seconds

SECONDS = 300.0
"""How long anything is waited for."""
_PR_SET_PDEATHSIG = 1
CONTEXT = multiprocessing.get_context("spawn")

Handler = Callable[..., Any]
Service = Callable[..., AbstractContextManager[Handler]]


class Failed(Exception):
    """A request failed in another process; the message says how."""


class Child:
    """A process that enters `service(*arguments)` and hands requests to what that yields."""

    def __init__(self, service: Service, arguments: Sequence[Any]) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process: BaseProcess = CONTEXT.Process(target=_serve, args=(theirs, service, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, *request: Any) -> None:
        """Sends a request; `answer` waits for what comes of it."""
        self._pipe.send(request)

    def answer(self) -> Any:
        """The answer to the first request that has none yet; the first answer of all says that it is set up."""
        if not self._pipe.poll(SECONDS):
            raise Failed(f"no answer from process {self.pid} within {SECONDS:g} s")
        try:
            value, error = self._pipe.recv()
        except EOFError:
            self._process.join(1)
            raise Failed(f"process {self.pid} ended with {self._process.exitcode}") from None
        if error is not None:
            raise error
        return value

    def ask(self, *request: Any) -> Any:
        """Sends a request and waits for its answer."""
        self.tell(*request)
        return self.answer()

    def pause(self) -> None:
        """Lets it stand still: some libraries spin while they wait."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends it, in good order if it can."""
        with suppress(ProcessLookupError):
            self.resume()
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()


@contextmanager
def children(*services: tuple[Service, *tuple[Any, ...]]) -> Iterator[list[Child]]:
    """A process for each `(service, *arguments)`, all set up; they end with the block."""
    with ExitStack() as stack:
        started = []
        for service, *arguments in services:
            child = Child(service, arguments)
            stack.callback(child.close)
            started.append(child)
        for child in started:
            child.answer()
        yield started


def _serve(pipe: Connection, service: Service, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which then closes its pipe
    # One that stands still would never see that the pipe has ended, should the harness be killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            _answer_all(pipe, service(*arguments))
        except NotAvailable as error:
            pipe.send((None, error))
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            pipe.send((None, Failed(f"{type(error).__name__}: {error}")))


def _answer_all(pipe: Connection, entered: AbstractContextManager[Handler]) -> None:
    with entered as handle, suppress(EOFError):
        pipe.send((None, None))
        while True:
            request = pipe.recv()
            pipe.send((handle(*request), None))


# What several services do


def in_rounds(step: Callable[[], Any], weights: Callable[[], np.ndarray], barrier: Any) -> Handler:
    """Answers `step` with the seconds from the barrier to the end of a step, and `weights` with a copy of them."""
    measure = seconds(step)

    def handle(request: str) -> Any:
        if request == "weights":
            return weights()
        barrier.wait(SECONDS)
        return measure()

    return handle


def pace(work: Callable[[], Any], length: float) -> float:
    """Works again and again for `length` seconds; returns how often a second."""
    began = now = perf_counter()
    times = 0
    while now - began < length:
        work()
        times += 1
        now = perf_counter()
    return times / (now - began)
