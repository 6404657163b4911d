"""Measures how fast a server steps for one worker on this host, in a job of its own."""

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np

from optd.ctl import output
from optd.ctl.invocation import Invocation
from optd.numpy.optimizer import Optimizer
from optd.session.session import Session
from optd_wire.errors import NotFound, OptdError

ALGORITHM = "adam"
WARM_UPS = 2
LEAST_STEPS = 3
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How bulk bytes travel."""

    lane: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Steps of a job of `elements` float32 numbers, each with its gradients sent and its weights received."""

    lane: str
    encoding: str
    elements: int
    steps: int
    p50_ms: float
    p99_ms: float
    steps_per_second: float
    gigabytes_per_second: float
    """Gradients and weights of the steps, as float32, whatever the encoding makes of them."""


def measure(
    invocation: Invocation, way: Way, elements: int, seconds: float, tell: Callable[[float], None]
) -> Measurement:
    """Steps for so many seconds, in a job of its own that is gone afterwards; tells how many have passed.

    Raises what the server, or the lane, has against it.
    """
    with _job(invocation, way) as session:
        weights = np.zeros(elements, np.float32)
        gradient = np.random.default_rng(0).standard_normal(elements, np.float32)
        optimizer = Optimizer(ALGORITHM, {"weights": weights}, session=session)
        with _interrupted_between_steps() as check:

            def step() -> None:
                optimizer.step({"weights": gradient})
                check()

            for _ in range(WARM_UPS):
                step()
            lengths = _lengths(step, seconds, tell)
    return summary(way, elements, lengths)


def _lengths(work: Callable[[], object], seconds: float, tell: Callable[[float], None]) -> list[float]:
    lengths: list[float] = []
    began = before = time.perf_counter()
    while before - began < seconds or len(lengths) < LEAST_STEPS:
        work()
        now = time.perf_counter()
        lengths.append(now - before)
        tell(now - began)
        before = time.perf_counter()
    return lengths


def summary(way: Way, elements: int, lengths: list[float]) -> Measurement:
    """A measurement from the lengths of steps, in seconds."""
    median, slow = np.quantile(lengths, (0.5, 0.99)).tolist()
    rate = len(lengths) / sum(lengths)
    return Measurement(
        lane=way.lane,
        encoding=way.encoding,
        elements=elements,
        steps=len(lengths),
        p50_ms=median * 1e3,
        p99_ms=slow * 1e3,
        steps_per_second=rate,
        gigabytes_per_second=rate * elements * 2 * FLOAT32_BYTES / 1e9,
    )


@contextmanager
def _job(invocation: Invocation, way: Way) -> Iterator[Session]:
    """A session with a job of a unique name. Both end with the block."""
    name = f"optctl-bench-{uuid.uuid4().hex[:12]}"
    try:
        with invocation.session(name, lane=way.lane, encoding=way.encoding) as session:
            yield session
    finally:
        with _uninterrupted():
            _delete(invocation, name)


def _delete(invocation: Invocation, name: str) -> None:
    server = invocation.server
    try:
        server.transport.delete_job(name, server.timeout)
    except NotFound:
        pass  # the job was never created
    except OptdError as error:
        # An earlier error is more important than this one.
        output.complain(f"job {name} may be left: {error}")


@contextmanager
def _interrupted_between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C is raised by the function that this gives; a second one is raised at once.

    An exception that comes at any moment may leave a lock of gRPC's held, and steps are all that goes on here.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C waits until what the first one has begun is done."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
