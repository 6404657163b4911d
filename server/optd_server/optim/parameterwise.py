"""One step of an algorithm that looks at parameters as a whole, on one flat segment of many groups."""

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import MASTER_WEIGHTS, Parameter, Parameterwise, Vector
from optd_server.optim.assignment import Assignment
from optd_server.optim.segment import SegmentState
from optd_server.optim.threads import share


def step(
    algorithm: Parameterwise,
    assignment: Assignment,
    segment: SegmentState,
    weights: Vector,
    gradient: Vector,
    out: Vector,
    present: npt.NDArray[np.bool_] | None,
    threads: int,
) -> None:
    """Write the new weights to `out` and update the segment's state; see `step.apply` for the arguments.

    Threads take whole parameters: one thread updates a parameter, even if it is larger than all others together. Of
    16-bit weights, one parameter at a time is held in float32.
    """

    def update(number: int) -> None:
        here = slice(int(segment.offsets[number]), int(segment.offsets[number] + segment.sizes[number]))
        if present is not None and not present[number]:
            np.copyto(out[here], weights[here])
            return
        shape = segment.shapes[number]
        needed = [field for field, needs in assignment.needs.items() if needs[number]]
        state = {field.name: segment.of(field.name, number) for field in needed if not field.of_weights}
        master = segment.of(MASTER_WEIGHTS.name, number) if MASTER_WEIGHTS in needed else None
        current = weights[here].astype(segment.dtype, copy=False).reshape(shape) if master is None else master
        new = np.empty(shape, segment.dtype) if segment.narrow else out[here].reshape(shape)
        algorithm.update(
            assignment.distinct[int(assignment.which[number])],
            Parameter(
                weights=current,
                gradient=gradient[here].reshape(shape),
                out=new,
                state=state,
                step=int(segment.steps[number]) + 1,
            ),
        )
        if segment.narrow:
            out[here] = new.reshape(-1)
        if master is not None:
            master[...] = new

    filled = np.flatnonzero(segment.sizes > 0)
    starts = segment.offsets[filled]

    def work(first: int, last: int) -> None:
        # What overflows here overflows in torch, too, and silently. The setting is the thread's own.
        with np.errstate(all="ignore"):
            low, high = np.searchsorted(starts, (first, last))
            for number in filled[low:high].tolist():
                update(number)

    share(work, segment.count, threads)
