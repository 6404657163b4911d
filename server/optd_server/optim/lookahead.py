"""Lookahead on top of any algorithm: slow weights, towards which the weights return every few steps.

Zhang, Lucas, Hinton and Ba, 2019, "Lookahead Optimizer: k steps forward, 1 step back", algorithm 1: after each k steps
of the algorithm, ``slow += alpha * (weights - slow)`` and ``weights = slow``. Steps are counted for each parameter, so
the slow weights of a parameter that misses a gradient wait, too. The algorithm's state is left as it is.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optd_server.optim.algorithm import Vector
from optd_server.optim.option import Option, Options, Range, integer, number
from optd_server.optim.runs import BLOCK
from optd_server.optim.threads import share

LOOKAHEAD_STEPS = "lookahead_steps"
LOOKAHEAD_ALPHA = "lookahead_alpha"
ALPHA = 0.5

LOOKAHEAD_OPTIONS: tuple[Option, ...] = (
    Option(
        LOOKAHEAD_STEPS,
        "int",
        None,
        Range(1, None),
        nullable=True,
        doc="Every so many steps of a parameter its slow weights move towards its weights, and the weights return to "
        "them (the Lookahead optimizer). None: never.",
    ),
    Option(
        LOOKAHEAD_ALPHA,
        "float",
        ALPHA,
        Range(0, 1, low_open=True),
        doc="How far the slow weights move, as a fraction of the way to the weights.",
    ),
)


def looks_ahead(options: Options) -> bool:
    """Whether parameters with these options have slow weights."""
    return options.get(LOOKAHEAD_STEPS) is not None


def period(options: Options) -> int:
    """Return after how many steps slow weights catch up, for options that look ahead."""
    return integer(options, LOOKAHEAD_STEPS)


def share_of_way(options: Options) -> float:
    """Return which share of the way slow weights go when they catch up."""
    return number({LOOKAHEAD_ALPHA: ALPHA, **options}, LOOKAHEAD_ALPHA)


def returns(
    options: Sequence[Options], counts: Sequence[int] | npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which parameters, shape (P,), return to their slow weights at these step counts.

    `counts` says how many consecutive parameters have each of `options`.
    """
    periods = np.repeat([period(each) if looks_ahead(each) else 0 for each in options], counts)
    due: npt.NDArray[np.bool_] = (periods > 0) & (steps % np.maximum(periods, 1) == 0)
    return due


def catch_up(slow: Vector, weights: Vector, alpha: float, threads: int = 1) -> None:
    """Move slow weights towards the weights, then set the weights to them; both in place.

    Args:
        slow: Shape (N,), of the dtype of the arithmetic.
        weights: Shape (N,). Weights of 16 bits get the slow weights, rounded.
        alpha: In (0, 1].
        threads: How many threads share the work, this one included.
    """

    def work(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            for start in range(first, last, BLOCK):
                here = slice(start, min(start + BLOCK, last))
                way = weights[here].astype(slow.dtype) - slow[here]
                np.multiply(way, slow.dtype.type(alpha), out=way)
                np.add(slow[here], way, out=slow[here])
                np.copyto(weights[here], slow[here], casting="same_kind")

    share(work, len(slow), threads)
