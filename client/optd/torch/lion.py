"""A class for Lion in torch's manner, which torch itself lacks: arguments and their checks. Only the server steps."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class Lion(torch.optim.Optimizer):
    """Lion, Chen et al., https://arxiv.org/abs/2302.06675: steps of equal size, along a sign.

    Args:
        params: The parameters, as torch takes them.
        lr: Learning rate; a tenth to a third of AdamW's is usual.
        betas: The momentum's share in the direction of the step, and how much of itself the momentum keeps.
        weight_decay: Decoupled weight decay, as in AdamW.
        maximize: Maximize the objective instead of minimizing it.

    Raises ValueError if an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("maximize", False)
