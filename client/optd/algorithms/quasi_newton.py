"""Steps that the curvature of the loss directs, which follows from how the gradient has changed."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from optd.algorithms.where import Where
from optd.numpy.optimizer import Optimizer
from optd.state.all_parameters import ParameterState
from optd.state.lbfgs import gather, spread
from optd_wire.dtypes import computed_dtype


class LBFGS(Optimizer):
    """`torch.optim.LBFGS` as a service: for one group of parameters of one dtype.

    `step(closure)` alone: the closure returns (loss, gradients) at the weights that the arrays hold then, as often as
    the server asks. Each call of it is a push, and a version of the job; in between, the job's weights are points that
    are tried. Several workers share a step under `optd.Sync`: of the mean of their losses and gradients.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: Literal["strong_wolfe"] | None = None,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "lbfgs",
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=max_iter * 5 // 4 if max_eval is None else max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
            **where,
        )

    def _gathered(self, rows: Sequence[Sequence[ParameterState]]) -> list[ParameterState]:
        (row,) = rows
        return [gather(row, self.param_groups[0]["history_size"])]

    def _spread(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[ParameterState]]:
        (row,), (group,) = rows, self._registration.groups
        shapes = [array.shape for array in group.arrays]
        return [spread(row[0], group.names, shapes, computed_dtype(group.arrays[0].dtype))]
