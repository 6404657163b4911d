"""What `LBFGS` does differently from the other classes: torch's default of `max_eval`, and the form of its state."""

from collections.abc import Mapping, Sequence
from typing import Any

from optd.numpy.optimizer import Optimizer
from optd.state.all_parameters import ParameterState
from optd.state.lbfgs import gather, spread
from optd_wire.dtypes import computed_dtype


class LBFGSBase(Optimizer):
    """The class that `LBFGS` derives from.

    In a state dict the first parameter has all of the state, as in torch. On the server each parameter has its part.
    """

    def __init__(self, algorithm: str, params: Any, *, max_iter: int, max_eval: int | None, **options: Any) -> None:
        max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
        super().__init__(algorithm, params, max_iter=max_iter, max_eval=max_eval, **options)

    def _gathered(self, rows: Sequence[Sequence[ParameterState]]) -> list[ParameterState]:
        (row,) = rows
        return [gather(row, self.param_groups[0]["history_size"])]

    def _spread(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[ParameterState]]:
        (row,), (group,) = rows, self._registration.groups
        shapes = [array.shape for array in group.arrays]
        return [spread(row[0], group.names, shapes, computed_dtype(group.arrays[0].dtype))]
