"""Delayed Nesterov in torch, naively, as an oracle: algorithm 3 of the paper, line by line."""

from typing import Any

import torch


class DelayedNesterov(torch.optim.Optimizer):
    """Liu et al., https://arxiv.org/abs/2401.09135."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.7,
        momentum: float = 0.9,
        delay: int = 1,
        activation: float = 0.0,
        *,
        foreach: bool = False,  # as all classes of torch take it
    ) -> None:
        assert not foreach
        if not (lr >= 0 and 0 <= momentum < 1 and delay >= 1 and 0 <= activation * delay <= 1):
            raise ValueError("out of range")
        super().__init__(params, {"lr": lr, "momentum": momentum, "delay": delay, "activation": activation})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            lr, beta, n, c = (group[name] for name in ("lr", "momentum", "delay", "activation"))
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["momentum_buffer"] = torch.zeros_like(p)
                    state["gradient_sum"] = torch.zeros_like(p)
                state["step"] += 1
                state["gradient_sum"] += p.grad
                if state["step"] % n == 0:
                    state["momentum_buffer"] = beta * state["momentum_buffer"] + state["gradient_sum"] / n
                    p.sub_(lr * ((1 - c * n + c) * beta * state["momentum_buffer"] + p.grad / n))
                    state["gradient_sum"] = torch.zeros_like(p)
                else:
                    p.sub_(lr * (c * beta * state["momentum_buffer"] + p.grad / n))
        return loss
