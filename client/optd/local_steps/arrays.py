"""`optd.LocalSteps`, for numpy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optd.local_steps.face import LocalStepsFace
from optd.local_steps.outer import DILOCO, Place
from optd.local_steps.settings import Settings
from optd.params.flat_view import Array
from optd.params.groups import ParamGroup, read_groups
from optd.session.session import Session
from optd_wire.errors import NotAnArray


class ArrayWeights:
    """Arrays that the script changes, by group and place."""

    def __init__(self, arrays: list[list[Array]]) -> None:
        self._arrays = arrays

    def read(self, place: Place) -> Array:
        """The array itself."""
        return self._arrays[place[0]][place[1]]

    def write(self, place: Place, array: Array) -> None:
        """Writes in place."""
        self._arrays[place[0]][place[1]][...] = array


class LocalSteps(LocalStepsFace):
    """Trains numpy arrays with steps of the script's own, and syncs with a job from time to time (DiLoCo).

        with optd.LocalSteps({"w": w, "b": b}, every=100, server="127.0.0.1:50051", job="digits") as local:
            for batch in batches:
                ...  # change w and b in place, as your own optimizer does
                local.step()

    Every `every` steps the last global weights minus the arrays travel as a gradient; the job's algorithm is the outer
    optimizer; the new global weights come back into the arrays. docs/local-steps.md says how, and what happens to late
    and lost workers.

    Args:
        params: Writable numpy arrays, as `optd.Optimizer` takes params; a group dict may name options and an algorithm
            of the outer optimizer.
        every: H, the local steps between two syncs of a parameter. "auto:H": the fastest worker of the job takes H,
            the others as many as they can in its time; "auto": "auto:100".
        session: An open session, for these local steps alone. None: they open one, and close it.
        outer: The outer optimizer: a dict with its "algorithm" and options. Default: that of DiLoCo. For an `async`
            job with several workers: `{"algorithm": "delayed_nesterov", "lr": 0.7, "delay": WORKERS}`.
        fragments: P: the parameters are divided among P fragments of about equal bytes, which are sent one after the
            other, H / P steps apart. At most `every`, and at most the number of parameters.
        delay: The answer to a fragment is applied this many local steps after it was sent; the transfer runs in a
            thread meanwhile. Less than `every`. 0: each sync blocks until the answer is there.
        alpha: The share of the local weights when an answer is applied: alpha * local + (1 - alpha) * global, in
            [0, 1). None: 0 without a delay, 0.5 with one.
        encoding: How messages carry the differences, as `optd.connect` takes it: "int8", "topk:0.05",
            "bfloat16:stochastic", …. None: as the session says, which also says how weights come back. A session that
            is opened here then has the lane "grpc".
        weight: The weight of this worker's differences in a mean with others; None: 1, or with "auto" the number of
            local steps.
        server, job, worker, if_exists, policy, gradients, averages, progress, durable, recreate: As `optd.connect`
            takes them, for a session that is opened here.

    The first worker creates the job with the values of its arrays; the arrays of others get the job's weights.

    Raises:
        InvalidRequest: An argument is out of range.
        OptdError: As `optd.Optimizer` raises it for params and options.
    """

    def __init__(
        self,
        params: Any,
        *,
        every: int | str,
        session: Session | None = None,
        outer: Mapping[str, Any] = DILOCO,
        fragments: int = 1,
        delay: int = 0,
        alpha: float | None = None,
        encoding: str | None = None,
        weight: float | None = None,
        **arguments: Any,
    ) -> None:
        settings = Settings.of(every, fragments, delay, alpha, encoding, weight)
        groups, _ = read_groups(params)
        own = [_writable(group) for group in groups]
        for group in groups:
            group.arrays = [np.array(array, order="C") for array in group.arrays]
        self._open(groups, ArrayWeights(own), settings, outer, session, arguments)

    def step(self) -> None:
        """Counts a local step, which has changed the arrays; syncs if it is time.

        Raises what a push or a pull raises: `Unreachable`, `DeadlineExceeded`, `NonfiniteGradient`, …. What has been
        computed then stays a difference to the old global weights, and is sent with the next sync, as far as it does
        not count already.
        """
        self._worker.after_step()


def _writable(group: ParamGroup) -> list[Array]:
    for name, renew in zip(group.names, group.renewals, strict=True):
        if renew is not None:
            wanted = "a numpy array, which local steps can change in place"
            raise NotAnArray(what=f"parameter {name!r}", wanted=wanted, got="one that cannot be written to")
    return list(group.arrays)
