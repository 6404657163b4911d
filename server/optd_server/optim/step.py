"""One step of an algorithm on one flat segment of many groups; new weights go to another array.

This step writes every new weight; the one in `touched` reads and writes only what has a gradient.

For an elementwise algorithm, `shared_coefficients` says which parameters share coefficients, `runs` says where these
lie, and a backend does the arithmetic. `parameterwise` updates one parameter after the other.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from optd_server.optim import parameterwise
from optd_server.optim.algorithm import Algorithm, Elementwise, Parameterwise, Vector
from optd_server.optim.assignment import Assignment
from optd_server.optim.backends.base import Backend, Work
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.option import Options
from optd_server.optim.segment import SegmentState
from optd_server.optim.shared_coefficients import SharedCoefficients

__all__ = ["ASSIGNMENTS", "Assignments", "SegmentState", "apply", "begin", "check", "take_step"]


class Assignments:
    """The assignment of each segment's last step, kept for its next one: a cache, whose loss changes no bits.

    Segments that are garbage leave it. Threads may share it as long as each segment has one step at a
    time.
    """

    def __init__(self) -> None:
        self._by_segment: WeakKeyDictionary[SegmentState, Assignment] = WeakKeyDictionary()

    def of(
        self,
        algorithm: Algorithm,
        options: Sequence[Options],
        segment: SegmentState,
        counts: Sequence[int] | None = None,
    ) -> Assignment:
        """Return the segment's assignment under these options; see `apply`."""
        assignment = self._by_segment.get(segment)
        if assignment is None or not assignment.fits(algorithm, options, counts):
            if isinstance(algorithm, Elementwise):
                assignment = SharedCoefficients(algorithm, options, segment, counts)
            else:
                assignment = Assignment(algorithm, options, segment, counts)
            self._by_segment[segment] = assignment
        return assignment


ASSIGNMENTS = Assignments()
"""The assignments of all segments whose caller has no cache of its own."""


def apply(
    algorithm: Algorithm,
    options: Sequence[Options],
    segment: SegmentState,
    *,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_] | None = None,
    counts: Sequence[int] | None = None,
    threads: int = 1,
    backend: Backend = BLOCKED,
    assignments: Assignments = ASSIGNMENTS,
) -> None:
    """Apply one step, write the new weights to `out`, and update the segment in place.

    Blocks until it is done; one call at a time for a segment. Overflow and NaN give what they give in
    torch, and no warning. The bits of the result depend on neither `threads`, nor `backend`, nor how the
    parameters lie.

    Args:
        algorithm: What to do.
        options: For each group of the segment its resolved options: `option.resolve`, after `option.check` found
            nothing. Replace a mapping instead of changing it once it has been passed here: the next step looks at the
            identity of the objects to see whether options have changed. Groups with equal options should share one.
        segment: The state of the P parameters and N elements.
        weights: The current weights, shape (N,), of the segment's dtype of weights, contiguous. Not modified. Those of
            16 bits are computed on in float32, and the result is rounded to nearest, ties to even.
        gradient: Shape (N,), of the segment's dtype. The elements of absent parameters are not used. Not
            modified.
        out: Shape (N,), of the dtype of `weights`, sharing memory with neither. Every element is written: for
            absent parameters, the current weights.
        present: Which parameters have a gradient, shape (P,); None means all. The others keep weights, state and
            step count, as parameters whose `grad` is None do in torch. An empty parameter that is present counts
            a step.
        counts: How many consecutive parameters have each of `options`; None: `options` are those of the groups.
        threads: How many threads share the work, this one included.
        backend: Who does the arithmetic of an elementwise algorithm.
        assignments: Keeps what follows from the options until they change.

    Raises:
        ValueError: A buffer has another shape or dtype than the segment says, `out` shares memory, or there
            is no thread to work.
    """
    check(
        segment, options, weights=weights, gradient=gradient, out=out, present=present, counts=counts, threads=threads
    )
    if present is not None and present.all():
        present = None
    take_step(algorithm, options, segment, weights, gradient, out, present, counts, threads, backend, assignments)


def take_step(
    algorithm: Algorithm,
    options: Sequence[Options],
    segment: SegmentState,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_] | None,
    counts: Sequence[int] | None,
    threads: int,
    backend: Backend,
    assignments: Assignments = ASSIGNMENTS,
) -> None:
    """Apply one step as `apply` does, for a caller whose arrays are what `apply` asks for: nothing is checked.

    `present` is None if all parameters have a gradient.
    """
    if len(segment.sizes) == 0:
        return
    weights, gradient = _read_only(weights), _read_only(gradient)
    assignment = begin(algorithm, options, segment, weights, present, counts, assignments)
    if isinstance(assignment, SharedCoefficients):
        work = Work(
            algorithm=assignment.algorithm,
            runs=assignment.sort(segment, present),
            table=assignment.table,
            weights=weights,
            gradient=gradient,
            out=out,
            state=segment.state,
        )
        if segment.count:
            backend.step(work, threads)
    else:
        assert isinstance(algorithm, Parameterwise)
        parameterwise.step(algorithm, assignment, segment, weights, gradient, out, present, threads)
    assignment.finish(segment, out, present, threads)


def begin(
    algorithm: Algorithm,
    options: Sequence[Options],
    segment: SegmentState,
    weights: Vector,
    present: npt.NDArray[np.bool_] | None,
    counts: Sequence[int] | None = None,
    assignments: Assignments = ASSIGNMENTS,
) -> Assignment:
    """Make a segment ready for a step of the parameters in `present`, or of all, and return which options they have.

    The assignment's `finish` ends the step.
    """
    assignment = assignments.of(algorithm, options, segment, counts)
    for field in assignment.needs:
        segment.allocate(field)
    assignment.begin(segment, weights, present)
    return assignment


def _read_only(array: Vector) -> Vector:
    view = array.view()
    view.flags.writeable = False
    return view


def check(
    segment: SegmentState,
    options: Sequence[Options],
    *,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_] | None,
    counts: Sequence[int] | None = None,
    threads: int,
) -> None:
    """Raise ValueError for arguments of `apply` that are not what it says."""
    if counts is None and len(options) != len(segment.groups):
        raise ValueError(f"options must be those of {len(segment.groups)} groups, got {len(options)}")
    if counts is not None and (len(counts) != len(options) or sum(counts) != len(segment.sizes)):
        raise ValueError(f"counts must be of {len(options)} options for {len(segment.sizes)} parameters, got {counts}")
    held, computed = segment.weights_dtype, segment.dtype
    for name, array, dtype in (("weights", weights, held), ("gradient", gradient, computed), ("out", out, held)):
        if array.shape != (segment.count,) or array.dtype != dtype:
            wanted = f"{dtype} of shape ({segment.count},)"
            raise ValueError(f"{name} must be {wanted}, got {array.dtype} of shape {array.shape}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"{name} must be contiguous and aligned")
    if present is not None and (present.shape != segment.sizes.shape or present.dtype != np.bool_):
        wanted = f"bool of shape {segment.sizes.shape}"
        raise ValueError(f"present must be {wanted}, got {present.dtype} of shape {present.shape}")
    if np.may_share_memory(out, weights) or np.may_share_memory(out, gradient):
        raise ValueError("out must not share memory with weights or gradient")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
