"""A class for each algorithm: torch's own, with its arguments, and `Served` before it."""

import torch

from optd.torch import lion
from optd.torch.optimizer import Served


class SGD(Served, torch.optim.SGD, algorithm="sgd", keeps_step=False):
    """`torch.optim.SGD` as a service."""


class Adam(Served, torch.optim.Adam, algorithm="adam"):
    """`torch.optim.Adam` as a service."""


class AdamW(Served, torch.optim.AdamW, algorithm="adamw", fixed={"decoupled_weight_decay": (True, "it is AdamW")}):
    """`torch.optim.AdamW` as a service."""


class Adadelta(Served, torch.optim.Adadelta, algorithm="adadelta"):
    """`torch.optim.Adadelta` as a service."""


class Adamax(Served, torch.optim.Adamax, algorithm="adamax"):
    """`torch.optim.Adamax` as a service."""


class RAdam(Served, torch.optim.RAdam, algorithm="radam"):
    """`torch.optim.RAdam` as a service."""


class RMSprop(Served, torch.optim.RMSprop, algorithm="rmsprop"):
    """`torch.optim.RMSprop` as a service."""


class Lion(Served, lion.Lion, algorithm="lion", keeps_step=False):
    """Lion as a service; see `optd.torch.lion.Lion` for its arguments."""
