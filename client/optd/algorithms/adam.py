"""Adam and what is built on it."""

from typing import Any, Unpack

from optd.algorithms.where import Where
from optd.numpy.optimizer import Optimizer


class Adam(Optimizer):
    """`torch.optim.Adam` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adam",
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            **where,
        )


class AdamW(Optimizer):
    """`torch.optim.AdamW` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adamw",
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            **where,
        )


class Adamax(Optimizer):
    """`torch.optim.Adamax` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adamax",
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            **where,
        )


class NAdam(Optimizer):
    """`torch.optim.NAdam` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "nadam",
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **where,
        )


class RAdam(Optimizer):
    """`torch.optim.RAdam` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "radam",
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **where,
        )


class SparseAdam(Optimizer):
    """`torch.optim.SparseAdam` as a service: for gradients of some rows only."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__("sparse_adam", params, lr=lr, betas=betas, eps=eps, maximize=maximize, **where)
