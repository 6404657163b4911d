"""A class for Delayed Nesterov in torch's manner, which torch itself lacks: arguments and checks. Only servers step."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class DelayedNesterov(torch.optim.Optimizer):
    """Delayed Nesterov, Liu et al., https://arxiv.org/abs/2401.09135, algorithm 3.

    Args:
        params: The parameters, as torch takes them.
        lr: Learning rate.
        momentum: How much of itself the momentum keeps each time it is refreshed.
        delay: After this many steps the momentum takes in the mean of their gradients.
        activation: The share of the momentum that each step between two refreshes applies.

    Raises ValueError if an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.7,
        momentum: float = 0.9,
        delay: int = 1,
        activation: float = 0.0,
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not delay >= 1:
            raise ValueError(f"Invalid delay value: {delay}")
        if not 0.0 <= activation * delay <= 1.0:
            raise ValueError(f"Invalid activation value: {activation}, with delay {delay}")
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "delay": delay, "activation": activation}
        super().__init__(params, defaults)
