"""A step size for each weight, from the gradients that it has had."""

from typing import Any, Unpack

from optd.algorithms.where import Where
from optd.numpy.optimizer import Optimizer


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


class Adafactor(Optimizer):
    """`torch.optim.Adafactor` as a service."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            "adafactor",
            params,
            lr=lr,
            beta2_decay=beta2_decay,
            eps=eps,
            d=d,
            weight_decay=weight_decay,
            maximize=maximize,
            **where,
        )
