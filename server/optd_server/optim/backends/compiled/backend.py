"""The backend of compiled kernels: one pass over memory, on several threads."""

from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Algorithm, Elementwise, Vector
from optd_server.optim.backends.base import Backend, Work
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.backends.compiled import kernels, narrow
from optd_server.optim.backends.compiled.narrow import fields_of
from optd_server.optim.backends.compiled.stores import LINE
from optd_server.optim.option import resolve
from optd_server.optim.reduce import Contribution, Reduction, presence
from optd_server.optim.runs import Runs, merge
from optd_server.optim.shared_coefficients import record_dtype
from optd_server.optim.threads import share

STREAMED_BYTES = 16 << 20
"""From this size on, written data does not stay in the cache anyway, so stores bypass it."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class CompiledBackend(Backend):
    """numba. Work that its kernels cannot do (other dtypes, strides, an algorithm without `fused`) goes to numpy."""

    def __init__(self) -> None:
        self.name = f"numba {numba.__version__}"
        self._compiling = Lock()
        self._ready: set[tuple[Any, np.dtype[Any]]] = set()
        # Compile or load a kernel, and run it, so that problems show now.
        if self.first_nonfinite(np.array([0, np.nan], np.float32)) != 1:
            raise RuntimeError("a kernel that was compiled gives wrong results")

    def prepare(self, algorithm: Algorithm, dtype: npt.DTypeLike) -> None:
        """See `Backend.prepare`."""
        dtype = np.dtype(dtype)
        fused = algorithm.fused if isinstance(algorithm, Elementwise) else None
        if dtype not in _FLOATS or (fused, dtype) in self._ready:
            return
        some = np.zeros(1, dtype)
        with self._compiling:
            if (None, dtype) not in self._ready:
                self._compile_all_but_steps(some)
                self._ready.add((None, dtype))
            if isinstance(algorithm, Elementwise) and fused is not None:
                self._compile_step(algorithm, some)
                self._ready.add((fused, dtype))

    def _compile_all_but_steps(self, some: Vector) -> None:
        self.first_nonfinite(some)
        self.scale(some, 1)
        self.copy(some.copy(), some)
        self.accumulate(some.copy(), some, add=True)
        self.reduce_mean(some.copy(), [Contribution(some)], np.ones(1, np.int64))

    def _compile_step(self, algorithm: Elementwise, some: Vector) -> None:
        options = resolve(algorithm.options, {})
        coefficients, _ = algorithm.numbers(options, 1, algorithm.initial_scalars(options))
        records = np.zeros(1, record_dtype(coefficients, some.dtype))
        runs = Runs(np.array([0, 1]), np.zeros(1, np.int64))
        _step(algorithm, runs, records, _read_only(some), _read_only(some), some.copy(), {}, 1)

    def step(self, work: Work, threads: int) -> None:
        """See `Backend.step`."""
        if work.algorithm.fused is None or work.gradient.dtype not in _FLOATS:
            BLOCKED.step(work, threads)
            return
        if len(work.table) == 0:  # everything is absent
            self.copy(work.out, work.weights, threads)
            return
        if work.narrow:
            narrow.step(work, _stepper(work.algorithm.fused), threads)
            return
        _step(
            work.algorithm,
            work.runs,
            work.table.records,
            work.weights,
            work.gradient,
            work.out,
            work.state,
            threads,
        )

    def first_nonfinite(self, array: npt.NDArray[np.floating[Any]], threads: int = 1) -> int | None:
        """See `Backend.first_nonfinite`."""
        if not _plain(array):
            return BLOCKED.first_nonfinite(array, threads)
        array, largest = _read_only(array), _largest(array.dtype)

        def work(first: int, last: int) -> int:
            return int(kernels.first_beyond(array, first, last, largest))

        return min((found for found in share(work, len(array), threads) if found >= 0), default=None)

    def reduce_mean(
        self, out: Vector, contributions: Sequence[Contribution], sizes: npt.NDArray[np.int64], threads: int = 1
    ) -> Reduction:
        """See `Backend.reduce_mean`."""
        gradients = [c.gradient for c in contributions]
        if not all(map(_plain, (out, *gradients))) or len(out) == 0:
            return BLOCKED.reduce_mean(out, contributions, sizes, threads)
        if any(gradient.dtype != out.dtype or gradient.shape != out.shape for gradient in gradients):
            # The kernel sees addresses only.
            raise ValueError(f"contributions must be {out.dtype} of shape {out.shape}")
        masks = presence(contributions, len(sizes))
        found, columns = _alike(masks, sizes)
        contributors = columns.sum(axis=1)
        scales = (1 / np.maximum(contributors, 1)).astype(out.dtype)
        addresses = np.array([gradient.ctypes.data for gradient in gradients], np.uint64)
        largest, line = _largest(out.dtype), _line(out)

        def work(first: int, last: int) -> bool:
            tile = np.empty(kernels.TILE, out.dtype)
            return bool(kernels.mean(out, addresses, found.starts, columns, scales, first, last, line, largest, tile))

        finite = all(share(work, len(out), threads))
        return Reduction(masks.sum(axis=0) > 0, finite)

    def accumulate(self, target: Vector, values: Vector, *, add: bool) -> bool:
        """See `Backend.accumulate`."""
        if not (_plain(target) and _plain(values) and target.dtype == values.dtype and target.shape == values.shape):
            return BLOCKED.accumulate(target, values, add=add)
        return bool(kernels.accumulate(target, _read_only(values), add, _largest(target.dtype)))

    def scale(self, target: Vector, factor: float, threads: int = 1) -> None:
        """See `Backend.scale`."""
        if not _plain(target):
            BLOCKED.scale(target, factor, threads)
            return
        with np.errstate(all="ignore"):
            rounded = target.dtype.type(factor)
        share(lambda first, last: kernels.scale(target, rounded, first, last), len(target), threads)

    def copy(self, out: Vector, source: Vector, threads: int = 1) -> None:
        """See `Backend.copy`."""
        if not (_plain(out) and _plain(source) and out.dtype == source.dtype and out.shape == source.shape):
            BLOCKED.copy(out, source, threads)
            return
        source, line = _read_only(source), _line(out)
        share(lambda first, last: kernels.copy(out, source, first, last, line), len(out), threads)


@cache
def _stepper(fused: Any) -> Any:
    return kernels.stepper(fused)


def _step(
    algorithm: Elementwise,
    runs: Runs,
    records: npt.NDArray[Any],
    weights: Vector,
    gradient: Vector,
    out: Vector,
    state: Any,
    threads: int,
) -> None:
    run = _stepper(algorithm.fused)
    fields = fields_of(algorithm, state, out.dtype)
    line = _line(out)

    def work(first: int, last: int) -> None:
        tile = np.empty(kernels.TILE, out.dtype)
        run(weights, gradient, out, fields, records, runs.starts, runs.kinds, first, last, line, tile)

    share(work, len(out), threads)


def _alike(masks: npt.NDArray[np.bool_], sizes: npt.NDArray[np.int64]) -> tuple[Runs, npt.NDArray[np.bool_]]:
    """Return the runs of parameters that the same contributors have, and for each run these contributors."""
    changes = np.ones(len(sizes), np.bool_)
    changes[1:] = (masks[:, 1:] != masks[:, :-1]).any(axis=0)
    found = merge(sizes, np.cumsum(sizes) - sizes, np.cumsum(changes) - 1)
    return found, np.ascontiguousarray(masks[:, np.flatnonzero(changes)[found.kinds]].T)


def _plain(array: npt.NDArray[Any]) -> bool:
    """Whether the kernels take an array."""
    flags = array.flags
    return array.dtype in _FLOATS and array.ndim == 1 and flags.c_contiguous and flags.aligned


def _line(out: Vector) -> int:
    """Return the index of the first element that begins a cache line, -1 if `out` should stay in the cache."""
    if out.nbytes < STREAMED_BYTES:
        return -1
    return -out.ctypes.data % LINE // out.itemsize


@cache
def _largest(dtype: np.dtype[Any]) -> Any:
    return np.finfo(dtype).max


def _read_only(array: Any) -> Any:
    """Return a read-only view, so that all callers use the one kernel compiled for read-only arrays."""
    view = array.view()
    view.flags.writeable = False
    return view
