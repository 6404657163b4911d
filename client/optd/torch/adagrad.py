"""What `optd.torch.Adagrad` does differently from the other classes, because torch's class does."""

import warnings
from typing import Any

from optd.torch.optimizer import Served


class ServedAdagrad(Served):
    """The class that `optd.torch.Adagrad` derives from."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Served.add_param_group`, but groups of Adagrad have one `initial_accumulator_value`, as in torch."""
        name = "initial_accumulator_value"
        common = self._own_defaults[name]
        if self._named_form(param_group) is None and param_group.get(name, common) != common:
            warnings.warn(f"adagrad: {name} is that of all groups, {common}, as in torch", stacklevel=2)
            param_group[name] = common
        super().add_param_group(param_group)
