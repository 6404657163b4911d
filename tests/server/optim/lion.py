"""Lion in torch, naively, as an oracle: the paper's algorithm 2, with a torch operation for each of its own."""

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Chen et al., https://arxiv.org/abs/2302.06675."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        foreach: bool = False,  # as all classes of torch take it
    ) -> None:
        assert not foreach
        if not (lr >= 0 and 0 <= betas[0] < 1 and 0 <= betas[1] < 1 and weight_decay >= 0):
            raise ValueError("out of range")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                exp_avg = state.setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(beta1 * exp_avg + (1 - beta1) * gradient))
                state["exp_avg"] = beta2 * exp_avg + (1 - beta2) * gradient
        return loss
