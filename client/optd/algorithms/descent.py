"""Steps along the gradient, or along its momentum."""

from typing import Any, Unpack

from optd.algorithms.where import Where
from optd.numpy.optimizer import Optimizer


class SGD(Optimizer):
    """`torch.optim.SGD` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "sgd",
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            **where,
        )


class ASGD(Optimizer):
    """`torch.optim.ASGD` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "asgd",
            params,
            lr=lr,
            lambd=lambd,
            alpha=alpha,
            t0=t0,
            weight_decay=weight_decay,
            maximize=maximize,
            **where,
        )


class Lion(Optimizer):
    """Lion (https://arxiv.org/abs/2302.06675), which torch does not have, in torch's manner."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "lion",
            params,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            maximize=maximize,
            **where,
        )


class Muon(Optimizer):
    """`torch.optim.Muon` as a service; for matrices only."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "muon",
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            **where,
        )
