"""A class for each algorithm: torch's own, with its arguments, and `Served` before it."""

import warnings
from typing import Any

import torch

from optd.torch import lion
from optd.torch.optimizer import Served


class SGD(Served, torch.optim.SGD, algorithm="sgd", keeps_step=False):
    """`torch.optim.SGD` as a service."""


class Adam(Served, torch.optim.Adam, algorithm="adam"):
    """`torch.optim.Adam` as a service."""


class AdamW(Served, torch.optim.AdamW, algorithm="adamw", fixed={"decoupled_weight_decay": (True, "it is AdamW")}):
    """`torch.optim.AdamW` as a service."""


class SparseAdam(Served, torch.optim.SparseAdam, algorithm="sparse_adam", counts_in_int=True):
    """`torch.optim.SparseAdam` as a service: for sparse gradients only."""


class Adagrad(Served, torch.optim.Adagrad, algorithm="adagrad"):
    """`torch.optim.Adagrad` as a service."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Served.add_param_group`. Torch takes `initial_accumulator_value` from the constructor, and no group's."""
        name = "initial_accumulator_value"
        common = self.defaults[name]
        if param_group.get(name, common) != common:
            warnings.warn(f"adagrad: {name} is that of all groups, {common}, as in torch", stacklevel=2)
            param_group[name] = common
        super().add_param_group(param_group)


class Adadelta(Served, torch.optim.Adadelta, algorithm="adadelta"):
    """`torch.optim.Adadelta` as a service."""


class Adamax(Served, torch.optim.Adamax, algorithm="adamax"):
    """`torch.optim.Adamax` as a service."""


class NAdam(Served, torch.optim.NAdam, algorithm="nadam"):
    """`torch.optim.NAdam` as a service."""


class RAdam(Served, torch.optim.RAdam, algorithm="radam"):
    """`torch.optim.RAdam` as a service."""


class RMSprop(Served, torch.optim.RMSprop, algorithm="rmsprop"):
    """`torch.optim.RMSprop` as a service."""


class Rprop(Served, torch.optim.Rprop, algorithm="rprop"):
    """`torch.optim.Rprop` as a service."""


class ASGD(Served, torch.optim.ASGD, algorithm="asgd"):
    """`torch.optim.ASGD` as a service."""


class Adafactor(Served, torch.optim.Adafactor, algorithm="adafactor"):
    """`torch.optim.Adafactor` as a service."""


class Muon(Served, torch.optim.Muon, algorithm="muon", keeps_step=False):
    """`torch.optim.Muon` as a service: for matrices only."""


class Lion(Served, lion.Lion, algorithm="lion", keeps_step=False):
    """Lion as a service; see `optd.torch.lion.Lion` for its arguments."""
