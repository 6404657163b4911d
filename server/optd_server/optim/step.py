"""The driver: one step of an algorithm on one flat segment, out of place for the weights.

`cases` says which parameters share coefficients, `runs` how their elements are cut into pieces of work;
here each piece becomes a block for the algorithm's kernel: views of the flat arrays where it is contiguous,
gathered copies with per-element coefficients where it is not. Kernels are elementwise, so the bits are the
same.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from optd_server.optim import cases, runs
from optd_server.optim.algorithm import Algorithm, Block, Vector
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState

__all__ = ["SegmentState", "apply"]

_Pieces: TypeAlias = Sequence[runs.Span | runs.Patchwork]


def apply(
    algorithm: Algorithm,
    options: Options,
    segment: SegmentState,
    *,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_] | None = None,
    threads: int = 1,
) -> None:
    """Apply one step, write the new weights to `out`, and update the segment in place.

    Blocks until it is done; one call at a time for a segment. Overflow and NaN give what they give in
    torch, and no warning. The bits of the result depend on neither `threads` nor how the parameters lie.

    Args:
        algorithm: What to do.
        options: Resolved options: `option.resolve`, after `option.check` found nothing.
        segment: The state of the P parameters and N elements.
        weights: The current weights, shape (N,), of the segment's dtype. Not modified.
        gradient: Shape (N,), of the segment's dtype. What absent parameters have there is not used. Not
            modified.
        out: Shape (N,), of the segment's dtype, sharing memory with neither. Every element is written: for
            absent parameters, the current weights.
        present: Which parameters have a gradient, shape (P,); None is all. The others keep weights, state and
            step count, as those whose `grad` is None do in torch. An empty parameter that is present counts a
            step.
        threads: How many threads share the work, this one included.

    Raises:
        ValueError: A buffer has another shape or dtype than the segment says, `out` shares memory, or there
            is no thread to work.
    """
    if present is None:
        present = np.ones(len(segment.sizes), np.bool_)
    _check(segment, weights=weights, gradient=gradient, out=out, present=present, threads=threads)
    fields = segment.ensure(algorithm, options)
    fresh = np.zeros(len(segment.sizes), np.bool_)
    for field in fields:
        if field.seeded:
            fresh |= ~segment.started[field.name]
    steps = segment.steps + present
    sorted_cases = cases.sort(algorithm, options, steps=steps, present=present, fresh=fresh, dtype=segment.dtype)
    worker = _Worker(
        algorithm=algorithm,
        cases=sorted_cases,
        weights=_read_only(weights),
        gradient=_read_only(gradient),
        out=out,
        state={field.name: segment.state[field.name] for field in fields},
    )
    pieces = runs.cut(segment.sizes, segment.offsets, sorted_cases.kinds, sorted_cases.families())
    _share(worker.work, list(pieces), threads)
    segment.steps[:] = steps
    for field in fields:
        segment.started[field.name] |= present


@dataclass(frozen=True)
class _Worker:
    """One step on one segment: its arrays of N elements, and what to do with each kind of them."""

    algorithm: Algorithm
    cases: cases.Cases
    weights: Vector
    gradient: Vector
    out: Vector
    state: dict[str, Vector]

    def work(self, pieces: _Pieces) -> None:
        """Update the elements of some pieces, on the calling thread."""
        largest = max(piece.count for piece in pieces)
        scratch = tuple(np.empty(largest, self.out.dtype) for _ in range(self.algorithm.scratch))
        # What overflows here overflows in torch, too, and silently. The setting is the thread's own.
        with np.errstate(all="ignore"):
            for piece in pieces:
                part = tuple(array[: piece.count] for array in scratch)
                if isinstance(piece, runs.Span):
                    self._update_span(piece, part)
                else:
                    self._update_patchwork(piece, part)

    def _update_span(self, piece: runs.Span, scratch: tuple[Vector, ...]) -> None:
        here = slice(piece.start, piece.stop)
        case = self.cases.cases[piece.kind]
        if case is None:
            np.copyto(self.out[here], self.weights[here])
            return
        block = Block(
            weights=self.weights[here],
            gradient=self.gradient[here],
            out=self.out[here],
            state={name: array[here] for name, array in self.state.items()},
            scratch=scratch,
            fresh=case.fresh,
        )
        self.algorithm.update(case.coefficients, block)

    def _update_patchwork(self, piece: runs.Patchwork, scratch: tuple[Vector, ...]) -> None:
        index = piece.elements()
        weights = self.weights[index]
        case = self.cases.cases[piece.kinds[0]]
        if case is None:
            self.out[index] = weights
            return
        block = Block(
            weights=weights,
            gradient=self.gradient[index],
            out=np.empty_like(weights),
            state={name: array[index] for name, array in self.state.items()},
            scratch=scratch,
            fresh=case.fresh,
        )
        self.algorithm.update(self.cases.spread(piece.kinds, piece.lengths), block)
        self.out[index] = block.out
        for name, array in self.state.items():
            array[index] = block.state[name]


def _share(work: Callable[[_Pieces], None], pieces: _Pieces, threads: int) -> None:
    """Deal pieces to `threads` threads, this one included; return when all are done."""
    shares = [pieces[i::threads] for i in range(min(threads, len(pieces)))]
    if not shares:
        return
    others = [_pool(threads - 1).submit(work, share) for share in shares[1:]]
    try:
        work(shares[0])
    finally:
        # A caller that sees an error must not have threads at work in its buffers.
        errors = [future.exception() for future in others]
    for error in errors:
        if error is not None:
            raise error


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="optd-optim")


def _read_only(array: Vector) -> Vector:
    view = array.view()
    view.flags.writeable = False
    return view


def _check(
    segment: SegmentState,
    *,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_],
    threads: int,
) -> None:
    for name, array in (("weights", weights), ("gradient", gradient), ("out", out)):
        if array.shape != (segment.count,) or array.dtype != segment.dtype:
            wanted = f"{segment.dtype} of shape ({segment.count},)"
            raise ValueError(f"{name} must be {wanted}, got {array.dtype} of shape {array.shape}")
    if present.shape != segment.sizes.shape or present.dtype != np.bool_:
        wanted = f"bool of shape {segment.sizes.shape}"
        raise ValueError(f"present must be {wanted}, got {present.dtype} of shape {present.shape}")
    if np.may_share_memory(out, weights) or np.may_share_memory(out, gradient):
        raise ValueError("out must not share memory with weights or gradient")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
