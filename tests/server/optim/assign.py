"""Assignment in torch, naively, as an oracle: a gradient becomes the parameter."""

from typing import Any

import torch


class Assign(torch.optim.Optimizer):
    """Without options."""

    def __init__(self, params: Any, *, foreach: bool = False) -> None:
        assert not foreach
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(p.grad)
        return loss
