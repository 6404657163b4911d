"""The steps of an optimizer whose weights a server holds: push, pull, and both in one call."""

from collections.abc import Callable
from typing import Any, overload

import torch

from optd.exchange.row_gradients import GradientsByGroup, has_rows
from optd.registration.recovery import UndonePush
from optd.session.push_settings import PushSettings
from optd.torch import complex_parameters
from optd.torch.preemption import lasting_step
from optd.torch.served_groups import ServedGroups
from optd.transport.requests import Names
from optd_wire.values import PushResult


class ServedSteps(ServedGroups):
    """Gradients out, weights in; see `optd.torch.optimizer.Served`."""

    _norms: bool

    @overload
    def step(
        self,
        closure: None = None,
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> None: ...

    @overload
    def step(
        self,
        closure: Callable[[], float],
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> float: ...

    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> float | None:
        """Pushes the gradients, steps on the server and pulls: the tensors then hold the new weights.

        Args:
            closure: Computes the gradients and returns the loss. `LBFGS` calls it several times.
            weight: The weight of the gradients in a mean with others, such as the number of examples; default: 1.
            loss_scale: What the server divides them by, as a GradScaler would; default: 1.
            norms: Whether `last` has the norms of the step; default: what the optimizer was given.

        Blocks until the step is done; in a `sync` job it waits for the pushes of the other workers. A call whose answer
        is lost is repeated and counts once. Gradients stay as they are.

        Returns:
            The closure's loss, of its first call.

        Raises:
            NonfiniteGradient: A gradient has a NaN or an infinite element; nothing has changed. (Unless the job skips
                such steps or zeroes such elements: see `optd.Gradients`.)
            RowsNotTaken, RowsOnly, RowsNeedZero: The algorithm takes no sparse gradients, or no others, or not with
                this option, as in torch.
            OptionConflict: An option was changed here and by another worker; `pull()`, then step again or take the
                other value.
            StaleEpoch: Another session has taken this worker's name.
            Unreachable, DeadlineExceeded: No answer in time.
            MemoryExceeded: The server has no room for weights that were changed here; there was no step.
        """
        norms = self._norms if norms is None else norms
        if closure is None:
            self._push_and_pull(PushSettings.of(weight, loss_scale, norms=norms))
            return None
        with lasting_step():
            return self._closure_step(closure, weight, loss_scale, norms)

    def _closure_step(
        self, closure: Callable[[], float], weight: float | None, loss_scale: float | None, norms: bool
    ) -> float:
        enabled = torch.enable_grad()(closure)
        while True:
            loss = enabled()
            asks = self._exchange.registration.needs_closure
            told = _number(loss) if asks else None
            pushed = self._push_and_pull(PushSettings.of(weight, loss_scale, told, begins=asks, norms=norms))
            while pushed.unfinished:
                pushed = self._push_and_pull(PushSettings.of(weight, loss_scale, _number(enabled()), norms=norms))
            if not isinstance(pushed, UndonePush):  # else the step begins again, at the weights that there are now
                return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def flush(self, *, norms: bool | None = None) -> PushResult:
        """Makes the step of the gradients that the job has added up (`optd.Gradients(accumulate=...)`), and pulls.

        For the end of an epoch or of a program, when fewer pushes have come than make a step. The step takes the mean,
        or the sum, of all pushes so far, whichever workers sent them. If none is accumulated, no step is made and the
        result is `nothing_pending`. Gradients of the tensors are neither read nor changed; options that
        have been changed in `param_groups` go with it. Counts once, as `step` does. Blocks until the step is done; in a
        `sync` job all workers of a round flush, and it waits for the others.

        Raises `InvalidRequest` where another worker of the round pushes gradients instead, and what `step` raises.
        """
        exchange = self._exchange
        with lasting_step(), exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            exchange.changes.settle()
            with exchange.receiving(), exchange.sending() as registration:
                flushed = registration.flush(PushSettings(norms=self._norms if norms is None else norms))
        self._opt_called = True  # as for `push`
        return flushed

    # A function that torch compiles breaks its graph here.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _push_and_pull(self, settings: PushSettings) -> PushResult:
        exchange = self._exchange
        with lasting_step(), exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            gradients = self._gradients()
            are_here = exchange.changes.settle()
            # If the job has all changes, the tensors hold the weights that rows do not change.
            some = has_rows(gradients) and exchange.registration.in_arrays and are_here
            with exchange.receiving(some=some), exchange.sending() as registration:
                return registration.step(gradients, settings=settings, has_weights=some)

    def _gradients(self) -> GradientsByGroup:
        gradients = self._exchange.gradients()
        complex_parameters.check_gradients(gradients, self._exchange.groups)
        return gradients

    def push(
        self,
        *,
        encoding: str | None = None,
        weight: float | None = None,
        loss_scale: float | None = None,
        norms: bool | None = None,
    ) -> PushResult:
        """As `step`, without the pull: the tensors stay as they are.

        `encoding` is how messages carry this push, as `optd.connect` takes it; left out, the session's. `weight`,
        `loss_scale` and `norms` are those of `step`.
        """
        settings = PushSettings.of(weight, loss_scale, norms=self._norms if norms is None else norms)
        with lasting_step(), self._exchange.lock:
            self._follow_groups()
            self._follow_state()
            self._check_options()
            gradients = self._gradients()
            self._exchange.changes.settle()
            with self._exchange.sending() as registration:
                pushed = registration.push(gradients, encoding, settings)
            if isinstance(pushed, UndonePush):
                self._exchange.pull()
        self._opt_called = True  # schedulers look for this, to warn if they are stepped first
        return pushed

    def pull(
        self,
        *,
        only_if_newer: bool = False,
        groups: Names = (),
        parameters: Names = (),
        weights: str = "",
        min_version: int = 0,
    ) -> bool:
        """Puts the current weights into the tensors, and the current options into `param_groups`.

        Args:
            only_if_newer: If neither weights nor options have changed since the last step or pull, transfer nothing and
                return False.
            groups: Only the weights of these groups.
            parameters: Only the weights of these parameters, or of these, too.
            weights: "ema" or "swa": that average of the weights (see `optd.EMA` and `optd.SWA`) instead of the weights
                themselves, which the next step, or `pull()`, brings back.
            min_version: Wait until the job has come to this version, for up to the session's `timeout`; the
                `DeadlineExceeded` after that has both versions.
        """
        if min_version:
            self.session.wait(min_version)  # before the lock: another thread's step may be what brings the version
        with self._exchange.lock:
            self._follow_groups()
            return self._exchange.pull(
                only_if_newer=only_if_newer,
                groups=groups,
                parameters=parameters,
                weights=weights,
                min_version=min_version,
            )

    def pull_rows(self, parameter: str, ids: Any, *, weights: str = "") -> torch.Tensor:
        """Rows of a parameter's current weights by its name, in a new tensor on the parameter's device.

        `ids` are integers in any order, repeats allowed. To have them in the parameter, under
        `torch.no_grad()`: `weight[ids] = optimizer.pull_rows("weight", ids)`. Raises what `optd.Optimizer.pull_rows`
        does.
        """
        with self._exchange.lock:
            return self._exchange.pull_rows(parameter, ids, weights)

    def push_weights(self) -> None:
        """Replaces the job's weights with those of the tensors, also beside other workers; keeps the state."""
        with self._exchange.lock:
            self._follow_groups()
            self._exchange.push_weights()


def _number(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, torch.Tensor) else loss
