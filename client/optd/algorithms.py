"""A class for each algorithm, with torch's arguments in torch's order. See `Optimizer` for `params` and the rest."""

from typing import Any, TypedDict, Unpack

from optd.optimizer import Optimizer
from optd.session import Session


class Where(TypedDict, total=False):
    """Which job an optimizer belongs to: an open session, or what is needed to open one; and how it shares memory."""

    session: Session
    server: str
    job: str
    worker: str
    zero_copy: bool


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


class Adadelta(Optimizer):
    """`torch.optim.Adadelta` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adadelta",
            params,
            lr=lr,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
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


class RMSprop(Optimizer):
    """`torch.optim.RMSprop` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "rmsprop",
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
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


class Adagrad(Optimizer):
    """`torch.optim.Adagrad` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adagrad",
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
            **where,
        )


class Rprop(Optimizer):
    """`torch.optim.Rprop` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "rprop",
            params,
            lr=lr,
            etas=etas,
            step_sizes=step_sizes,
            maximize=maximize,
            **where,
        )
