"""The steps of an optimizer: push, pull, and both in one call."""

from collections.abc import Callable
from typing import Any

from optd.exchange.read_gradients import read_weights
from optd.numpy.optimizer_arrays import OptimizerArrays
from optd.params.flat_view import Array
from optd.params.pulled_rows import find_array
from optd.registration.local_changes import IGNORE
from optd.registration.recovery import UndonePush
from optd.session.push_settings import PushSettings
from optd.transport.requests import Names
from optd_wire.errors import InvalidRequest, StructureMismatch
from optd_wire.values import PushResult


class OptimizerSteps(OptimizerArrays):
    """Gradients out, weights in; see `optd.numpy.optimizer.Optimizer`."""

    _norms: bool

    def step(
        self,
        gradients: Any = None,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> Any:
        """Pushes gradients, steps on the server and pulls: the arrays, and `params`, then hold the new weights.

        Args:
            gradients: Arrays in the structure of the params, or a dict of arrays by name. None, or an entry left out of
                a dict, means no gradient. `(ids, rows)` in the place of an array is the gradient of some of its rows: n
                integers, and an array of shape (n, *shape[1:]); rows of repeated ids are added up. Or a closure that
                returns (loss, gradients), which `optd.LBFGS` calls several times. Default: `gradients` of this
                optimizer, which after `zero_grad()` means no gradient for any parameter.
            encoding: How messages carry this push and its reply, as `connect` takes it; default: the session's.
            weight: The weight of the gradients in a mean with others, such as the number of examples; default: 1.
            loss_scale: What the server divides them by; default: 1. It multiplies by the reciprocal in float32, as
                torch's GradScaler does.
            norms: Whether the result has the norms of the step; default: what the optimizer was given.

        Blocks until the step is done; in a `sync` job it waits for the pushes of the other workers. A call whose answer
        is lost is repeated and counts once. After gradients of rows only weights that have changed since `version` are
        written: what a script has written into the arrays may stay there.

        Returns:
            The closure's loss, else a `PushResult`.

        Raises:
            NonfiniteGradient: A gradient has a NaN or an infinite element; nothing has changed. (Unless the job skips
                such steps, as the result then says, or zeroes such elements: see `optd.Gradients`.)
            ShapeMismatch, DtypeMismatch, StructureMismatch, UnknownParameter: Gradients do not fit the params.
            RowOutOfRange: A parameter has no such row.
            RowsNotTaken, RowsOnly, RowsNeedZero: The algorithm does not take rows, or takes only rows, or does not take
                them with this option, as in torch.
            OptionConflict: An option was changed here and by another worker; `pull()`, then step again or take the
                other value.
            StaleEpoch: Another session has taken this worker's name.
            UnknownEncoding, InvalidRequest: There is no such encoding, or the session's lane does not carry it.
            EncodingOverflow: A finite number is too large for the encoding; nothing has changed.
            Unreachable, DeadlineExceeded: No answer in time.
        """
        norms = self._norms if norms is None else norms
        if not callable(gradients):
            return self._step(gradients, encoding, PushSettings.of(weight, loss_scale, norms=norms))
        while True:
            loss, found = _evaluated(gradients)
            asks = self._registration.needs_closure
            first = PushSettings.of(weight, loss_scale, loss if asks else None, begins=asks, norms=norms)
            result = self._step(found, encoding, first)
            while result.unfinished:
                told, found = _evaluated(gradients)
                result = self._step(found, encoding, PushSettings.of(weight, loss_scale, told, norms=norms))
            if not isinstance(result, UndonePush):  # else the step begins again, at the weights that there are now
                return loss

    def _step(self, gradients: Any, encoding: str | None, settings: PushSettings) -> PushResult:
        self._check_arrays()
        rows = self._rows(gradients)
        with self._registration.lock, self._sending():
            are_here = self._changes.settle() or self._changes.mode == IGNORE
            with self._receiving() as registration:
                return registration.step(rows, encoding, settings, has_weights=are_here)

    def push(
        self,
        gradients: Any = None,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> PushResult:
        """As `step`, without the pull: the arrays keep their weights."""
        if callable(gradients):
            _, gradients = _evaluated(gradients)
        settings = PushSettings.of(weight, loss_scale, norms=self._norms if norms is None else norms)
        self._check_arrays()
        rows = self._rows(gradients)
        with self._registration.lock, self._sending():
            self._changes.settle()
            pushed = self._registration.push(rows, encoding, settings)
            if isinstance(pushed, UndonePush):
                self.pull()
            return pushed

    def flush(self, *, norms: bool | None = None) -> PushResult:
        """Makes the step of the gradients that the job has added up (`optd.Gradients(accumulate=...)`), and pulls.

        For the end of an epoch or of a program, when fewer pushes have come than make a step. The step takes the mean,
        or the sum, of all pushes so far, whichever workers sent them. If none is accumulated, no step is made and the
        result is `nothing_pending`. Options that have been changed in `param_groups` go with it. Counts
        once, as `step` does. Blocks until the step is done; in a `sync` job all workers of a round flush, and it waits
        for the others.

        Raises `InvalidRequest` where another worker of the round pushes gradients instead, and what `step` raises.
        """
        self._check_arrays()
        with self._registration.lock, self._sending():
            self._changes.settle()
            with self._receiving() as registration:
                return registration.flush(PushSettings(norms=self._norms if norms is None else norms))

    def pull(
        self,
        *,
        only_if_newer: bool = False,
        groups: Names = (),
        parameters: Names = (),
        weights: str = "",
        min_version: int = 0,
    ) -> Any:
        """Puts the current weights into the arrays, and the current options into `param_groups`.

        Args:
            only_if_newer: If neither weights nor options have changed since the last step or pull, transfer nothing and
                return None.
            groups: Only the weights of these groups.
            parameters: Only the weights of these parameters; with `groups`, of both.
            weights: "ema" or "swa": that average of the weights (see `optd.EMA` and `optd.SWA`) instead of the weights
                themselves, which the next step, or `pull()`, brings back. `session.pull(weights="ema")` gives it in
                arrays of its own.
            min_version: Wait until the job has come to this version, for up to the session's `timeout`; the
                `DeadlineExceeded` after that has both versions.

        With some groups or parameters `version` does not change, as gradients are computed on the oldest weights.

        Returns:
            The weights, as `params` has them; None if nothing was read.

        Raises:
            UnknownGroup, UnknownParameter: The job has no group or parameter of this name; nothing has changed.
            UnknownAverage, EmptyAverage: The job keeps no such average, or nothing has entered it yet.
        """
        self._check_arrays()
        if min_version:
            self.session.wait(min_version)  # before the lock: another thread's step may be what brings the version
        with self._registration.lock:
            changed = self._changes.watched.differences().all
            left_alone = self._changes.not_pulled(changed, groups, parameters)
            self._changes.expect()
            try:
                pulled = self._registration.pull(
                    only_if_newer=only_if_newer,
                    groups=groups,
                    parameters=parameters,
                    weights=weights,
                    min_version=min_version,
                )
            except BaseException:
                self._leaves = None
                self._changes.note(but=changed)
                raise
            if not pulled:
                self._changes.note(but=changed)
                return None
            self._leaves = None
            self._changes.note(but=left_alone)
            return self.params

    def pull_rows(self, parameter: str, ids: Any, *, weights: str = "") -> Array:
        """Rows of a parameter's current weights, in a new array of shape (n, *shape[1:]); nothing else changes.

        `ids` are n integers in any order, repeats allowed. All rows are of one version, the job's current
        one; `weights` names an average of them, as in `pull`. To have them in an array of the params:
        `array[ids] = optimizer.pull_rows("table", ids)`.

        Raises:
            UnknownParameter: No group has a parameter of that name.
            RowOutOfRange: An id is not in [0, shape[0]).
            NotAnArray: The ids are not integers in one dimension.
        """
        array = find_array(self._registration.groups, parameter, self.session.job)
        encoding = self.session.wire.weights
        return self.session.read_rows(parameter, array.shape, array.dtype, ids, encoding=encoding, weights=weights)

    def push_weights(self, weights: Any = None) -> None:
        """Replaces the job's weights with those in the arrays of the params; the optimizer's state stays.

        Args:
            weights: Weights to send instead, in the structure of the params or by name, as `step` takes gradients, in
                the dtypes of the params; None, or an entry left out of a dict, leaves a parameter unchanged. For arrays
                that cannot be written to, such as JAX's, and with `zero_copy`. The current weights are then pulled.

        Works whether or not other workers take part in the job; without others, the next step sends changes by itself
        (see `local_changes`).

        Raises:
            ShapeMismatch, DtypeMismatch, StructureMismatch, UnknownParameter, NotAnArray: Weights do not fit the
                params; nothing has changed.
            InvalidRequest: With `zero_copy` the arrays do not hold the weights, and none are given.
        """
        self._check_arrays()
        with self._registration.lock:
            registration = self._registration
            if weights is None and not registration.in_arrays:
                problem = (
                    "with zero_copy the arrays of params do not hold the weights: give push_weights() those to send"
                )
                raise InvalidRequest(problem=problem)
            rows = None if weights is None else read_weights(weights, registration.groups, in_groups=self._in_groups)
            self._changes.unsent = self._changes.watched.differences().all
            with self._receiving():
                if rows is None:
                    registration.write_weights()
                else:
                    registration.write_given(rows)


def _evaluated(closure: Callable[[], Any]) -> tuple[Any, Any]:
    """Loss and gradients of a closure; raises `StructureMismatch` if it returns anything else."""
    result = closure()
    if type(result) is not tuple or len(result) != 2:
        raise StructureMismatch(what="a closure's result", expected="(loss, gradients)", got=type(result).__name__)
    loss, gradients = result
    return loss, gradients
