"""The kernels as numba compiles them. Each works on elements ``first <= i < last``, on the calling thread.

Two things make LLVM emit vector code. Loops run over slices from 0 to their size: an index that may be negative
would wrap around. And all functions promise that no two arrays overlap: with more than about four arrays LLVM
gives up checking that itself. Without ``fastmath`` nothing is reassociated or contracted, so the bits are those
of numpy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core.compiler import Compiler
from numba.extending import overload, register_jitable

from optd_server.optim.backends.compiled import sources
from optd_server.optim.backends.compiled.cache import KernelCache
from optd_server.optim.backends.compiled.stores import LINE, element_at, fence, stream

TILE = 128
"""How many new weights are computed in the fastest cache before they are streamed out; measured: 512 and more gain
nothing."""
BLOCK = 1024
"""Elements at a time without streaming: what a kernel's second loop reads is still in the fastest cache."""


class _NoAlias(Compiler):
    """Numba's compiler, with the promise that arrays do not overlap."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def kernel(function: Callable[..., Any], inlined: Callable[..., Any] | None = None) -> Any:
    """Compile a function when it is called or told to; keep it on disk for the next process.

    `inlined` is code from outside of this package that becomes part of it.
    """
    # No reference counts: a kernel only borrows arrays, and would count for each slice of each tile.
    dispatcher = njit(nogil=True, error_model="numpy", pipeline_class=_NoAlias, _nrt=False)(function)
    name = function.__name__
    if inlined is not None:
        version = sources.digest(inlined)
        if version is None:  # nothing tells whether the code on disk is still current
            return dispatcher
        name += f"-{inlined.__module__.rpartition('.')[2]}-{version}"
    dispatcher._cache = KernelCache(function, name)
    return dispatcher


def _cut(state: Any, start: int, stop: int) -> Any:
    """Slice every array of a tuple; a name for compiled code, in which the overload below replaces it."""
    raise NotImplementedError


@overload(_cut, inline="always", strict=False)
def _cut_of(state: Any, start: Any, stop: Any) -> Any:
    # numba knows no comprehension over a tuple: one line for each length, up to `MOST_FUSED`.
    return {
        0: lambda state, start, stop: (),
        1: lambda state, start, stop: (state[0][start:stop],),
        2: lambda state, start, stop: (state[0][start:stop], state[1][start:stop]),
        3: lambda state, start, stop: (state[0][start:stop], state[1][start:stop], state[2][start:stop]),
        4: lambda state, start, stop: (
            state[0][start:stop],
            state[1][start:stop],
            state[2][start:stop],
            state[3][start:stop],
        ),
        5: lambda state, start, stop: (
            state[0][start:stop],
            state[1][start:stop],
            state[2][start:stop],
            state[3][start:stop],
            state[4][start:stop],
        ),
        6: lambda state, start, stop: (
            state[0][start:stop],
            state[1][start:stop],
            state[2][start:stop],
            state[3][start:stop],
            state[4][start:stop],
            state[5][start:stop],
        ),
    }[len(state)]


@register_jitable(inline="always")
def _advance(start: int, end: int, line: int, width: int) -> Any:
    """Return where a tile that begins at `start` ends, and whether it is to be streamed.

    Only whole lines are streamed; what lies before the first and after the last is stored as usual.
    """
    if line < 0:
        return min(start + BLOCK, end), False
    beyond = (start - line) % width
    if beyond != 0:
        return min(start + width - beyond, end), False
    lines = min(TILE, end - start) // width
    if lines == 0:
        return end, False
    return start + lines * width, True


def stepper(fused: Callable[..., None]) -> Any:
    """Return the kernel that makes one step of an algorithm on a range of a segment.

    Its arguments: weights, gradient, out, state as a tuple; the records of coefficients; where each run starts, and its
    kind (see `shared_coefficients`); the range; the first element of `out` that begins a cache line, or -1 to stream
    nothing; a tile.
    """
    # Not a dispatcher of its own: numba's key for the code on disk would then hold a random number.
    register_jitable(inline="always")(fused)

    def step(
        weights: Any,
        gradient: Any,
        out: Any,
        state: Any,
        records: Any,
        starts: Any,
        kinds: Any,
        first: int,
        last: int,
        line: int,
        tile: Any,
    ) -> None:
        width = LINE // out.itemsize
        run = np.searchsorted(starts, first, side="right") - 1
        start = first
        while start < last:
            end = min(starts[run + 1], last)
            kind = kinds[run]
            c = records[max(0, (kind - 1) >> 1)]
            fresh = ((kind - 1) & 1) != 0
            run += 1
            while start < end:
                stop, streamed = _advance(start, end, line, width)
                target = tile[: stop - start] if streamed else out[start:stop]
                if kind == 0:
                    source = weights[start:stop]
                    for i in range(target.size):
                        target[i] = source[i]
                else:
                    fused(c, fresh, weights[start:stop], gradient[start:stop], target, _cut(state, start, stop))
                if streamed:
                    stream(out[start:stop], tile, stop - start)
                start = stop
        if line >= 0:
            fence()

    return kernel(step, fused)


@kernel
def copy(out: Any, source: Any, first: int, last: int, line: int) -> None:
    """Copy; `line` as in `stepper`."""
    width = LINE // out.itemsize
    lead = min(last, first + (line - first) % width) if line >= 0 else last
    body = (last - lead) // width * width
    if line >= 0 and body > 0:
        stream(out[lead : lead + body], source[lead : lead + body], body)
        fence()
    for start, stop in ((first, lead), (lead + body, last)):
        target, values = out[start:stop], source[start:stop]
        for i in range(target.size):
            target[i] = values[i]


@kernel
def accumulate(target: Any, values: Any, add: bool, largest: Any) -> bool:
    """Set or add; return whether no element is then beyond `largest`, the dtype's largest number, or NaN."""
    beyond = 0
    if add:
        for i in range(target.size):
            target[i] = target[i] + values[i]
            beyond |= not (abs(target[i]) <= largest)
    else:
        for i in range(target.size):
            target[i] = values[i]
            beyond |= not (abs(values[i]) <= largest)
    return beyond == 0


@kernel
def scale(target: Any, factor: Any, first: int, last: int) -> None:
    """Multiply in place."""
    target = target[first:last]
    for i in range(target.size):
        target[i] = target[i] * factor


@kernel
def first_beyond(array: Any, first: int, last: int, largest: Any) -> int:
    """Return the first index whose element is NaN or beyond `largest`, or -1."""
    for start in range(first, last, BLOCK):
        part = array[start : min(start + BLOCK, last)]
        beyond = 0
        for i in range(part.size):
            beyond |= not (abs(part[i]) <= largest)
        if beyond != 0:
            for i in range(part.size):
                if not (abs(part[i]) <= largest):
                    return start + i
    return -1


@kernel
def mean(
    out: Any,
    addresses: Any,
    starts: Any,
    masks: Any,
    scales: Any,
    first: int,
    last: int,
    line: int,
    largest: Any,
    tile: Any,
) -> bool:
    """Write the mean of arrays at some addresses; return whether all of it is finite.

    `masks` says for each run and array whether it counts, `scales` holds the factor for the sum of each run.
    """
    width = LINE // out.itemsize
    run = np.searchsorted(starts, first, side="right") - 1
    start = first
    beyond = 0
    while start < last:
        end = min(starts[run + 1], last)
        factor = scales[run]
        while start < end:
            stop, streamed = _advance(start, end, line, width)
            target = tile[: stop - start] if streamed else out[start:stop]
            for i in range(target.size):
                target[i] = -out.dtype.type(0)  # adding it leaves every number as it is, -0.0 included
            for k in range(addresses.size):
                if masks[run, k]:
                    address = addresses[k] + np.uint64(start * out.itemsize)
                    for i in range(target.size):
                        target[i] = target[i] + element_at(address, i, out)
            for i in range(target.size):
                target[i] = target[i] * factor
                beyond |= not (abs(target[i]) <= largest)
            if streamed:
                stream(out[start:stop], tile, stop - start)
            start = stop
        run += 1
    if line >= 0:
        fence()
    return beyond == 0
