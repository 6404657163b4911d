"""How the rows use optd: every name of it that they need is here."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import optd
from bench.processes import in_rounds, pace
from bench.row import NotAvailable
from bench.sizes import Shapes, arrays, joined, single
from optd.local import LocalServer
from optd.transport.lane_choice import LaneName
from optd_server.optim import option
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.registry import BackendUnavailable, choose
from optd_server.optim.step import SegmentState, apply
from optd_server.store.memory import Region

WEIGHTS, GRADIENTS = 1, 2
"""Seeds: weights and gradients of these shapes are the same on both sides and in all processes."""


def processors() -> int:
    """The processors that this process may use: the threads that both sides of a row get."""
    return len(os.sched_getaffinity(0))


# Kernels


class Kernel:
    """One algorithm on one flat segment, without a server."""

    def __init__(self, algorithm: str, options: Mapping[str, Any], shapes: Shapes, backend: str) -> None:
        self._algorithm = ALGORITHMS[algorithm]
        self._options = [option.resolve(self._algorithm.options, dict(options))]
        self._segment = SegmentState([int(np.prod(shape)) for shape in shapes.values()], np.float32)
        self._present = np.ones(len(shapes), np.bool_)
        self._backend = _backend(backend)
        self._weights = _as_the_server_has_it(joined(list(arrays(shapes, WEIGHTS).values())))
        self._gradient = _as_the_server_has_it(joined(list(arrays(shapes, GRADIENTS).values())))
        self._out = _as_the_server_has_it(np.zeros_like(self._weights))

    def step(self) -> None:
        """One step."""
        apply(
            self._algorithm,
            self._options,
            self._segment,
            weights=self._weights,
            gradient=self._gradient,
            out=self._out,
            present=self._present,
            threads=processors(),
            backend=self._backend,
        )
        self._weights, self._out = self._out, self._weights

    def weights(self) -> np.ndarray:
        """A copy."""
        return self._weights.copy()


def _as_the_server_has_it(array: np.ndarray) -> np.ndarray:
    """A copy in aligned memory of its own."""
    copied = Region(array.nbytes).array(array.dtype, 0, array.size)
    copied[:] = array
    return copied


def _backend(name: str) -> Backend:
    try:
        return choose(name)
    except BackendUnavailable as unavailable:
        raise NotAvailable(f"backend {name}: {unavailable}") from unavailable


# Server and jobs


def server(*arguments: str) -> AbstractContextManager[LocalServer]:
    """A server process with default settings; `address` is where it listens."""
    return optd.local(*arguments)


class Job:
    """A worker of a job, and the gradients that it pushes again and again."""

    def __init__(self, optimizer: optd.Optimizer, parameters: dict[str, np.ndarray], shapes: Shapes, seed: int) -> None:
        self.optimizer = optimizer
        self._parameters = parameters
        self._gradients: dict[str, np.ndarray] | None = arrays(shapes, seed)

    def share(self) -> None:
        """From here on gradients lie where the server reads them, and weights where it writes them."""
        assert self._gradients is not None
        for name, gradient in self._gradients.items():
            self.optimizer.gradients[name][...] = gradient
        self._parameters = self.optimizer.weights
        self._gradients = None

    def step(self) -> None:
        """Push, step, pull."""
        if self._gradients is None:
            self.optimizer.step()
            self._parameters = self.optimizer.weights
        else:
            self.optimizer.step(self._gradients)

    def push(self) -> None:
        """A push alone."""
        self.optimizer.push(self._gradients)

    def wait_durable(self) -> None:
        """Wait until the last step survives a power cut."""
        self.optimizer.session.wait_durable()

    def pull_unchanged(self) -> None:
        """A pull of a version that is here already."""
        self.optimizer.pull(only_if_newer=True)

    def pull_all(self) -> None:
        """A pull of all weights, into new arrays."""
        self.optimizer.session.pull()

    def weights(self) -> np.ndarray:
        """A copy."""
        return joined(list(self._parameters.values()))


@contextmanager
def job(
    address: str,
    shapes: Shapes,
    *,
    name: str = "bench",
    worker: str = "w0",
    lane: LaneName = "auto",
    encoding: str = "float32",
    zero_copy: bool = False,
    workers: int = 1,
    groups: int = 1,
    gradients: int = GRADIENTS,
) -> Iterator[Job]:
    """Adam as a service, on new weights; `workers` make a round, if there are more than one."""
    policy = optd.Sync(workers=workers) if workers > 1 else optd.Async()
    with optd.connect(address, job=name, worker=worker, lane=lane, encoding=encoding, policy=policy) as session:
        weights = arrays(shapes, WEIGHTS)
        optimizer = optd.Adam(_grouped(weights, groups), lr=1e-3, session=session, zero_copy=zero_copy)
        made = Job(optimizer, weights, shapes, gradients)
        if zero_copy:
            made.share()
        yield made


class Table:
    """A worker of a job of one table, of which some rows have a gradient in each step."""

    def __init__(self, optimizer: optd.Optimizer, weights: np.ndarray) -> None:
        self._optimizer = optimizer
        self._weights = weights

    def step(self, gradient: tuple[np.ndarray, np.ndarray]) -> None:
        """Push rows, step, pull what has changed."""
        self._optimizer.step({"table": gradient})

    def weights(self) -> np.ndarray:
        """A copy."""
        return self._weights.reshape(-1).copy()


@contextmanager
def table(address: str, shape: tuple[int, int], lr: float) -> Iterator[Table]:
    """SparseAdam as a service, on a table of zeros."""
    weights = np.zeros(shape, np.float32)
    with optd.connect(address, job="table", worker="w0") as session:
        yield Table(optd.SparseAdam({"table": weights}, lr=lr, session=session), weights)


def _grouped(weights: dict[str, np.ndarray], groups: int) -> Any:
    if groups == 1:
        return weights
    items = list(weights.items())
    return [{"params": items[index::groups]} for index in range(groups)]


# Memory


def peak_bytes(pid: int) -> int:
    """The most memory that a process has ever had resident, with the shared pages that it has touched."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


# Workers in processes of their own


@contextmanager
def worker(address: str, shapes: Shapes, barrier: Any, how: Mapping[str, Any]) -> Iterator[Callable[..., Any]]:
    """A service of `processes`: a worker that makes rounds with those that wait at the same barrier."""
    with job(address, shapes, **how) as mine:
        yield in_rounds(mine.step, mine.weights, barrier)


@contextmanager
def pusher(address: str, elements: int, name: str) -> Iterator[Callable[..., Any]]:
    """A service of `processes`: pushes to a job of its own for so many seconds; answers with pushes a second."""
    with job(address, single(elements), name=name) as mine:
        yield lambda seconds: pace(mine.push, seconds)


@contextmanager
def snapshots(address: str, name: str, ended: Any) -> Iterator[Callable[..., Any]]:
    """A service of `processes`: has one snapshot of a job written after the other until `ended`; answers how many."""

    def handle() -> int:
        written, last = 0, -1
        while not ended.is_set():
            durable = session.wait_durable()
            written, last = written + (durable != last), durable
        return written

    with optd.connect(address, job=name, worker="observer") as session:
        yield handle
