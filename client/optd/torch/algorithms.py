"""A class for each algorithm: torch's own, with its arguments, and `Served` before it."""

import torch

from optd.torch.optimizer import Served


class SGD(Served, torch.optim.SGD, algorithm="sgd", keeps_step=False):
    """`torch.optim.SGD` as a service."""


class Adam(Served, torch.optim.Adam, algorithm="adam"):
    """`torch.optim.Adam` as a service."""


class AdamW(Served, torch.optim.AdamW, algorithm="adamw", fixed={"decoupled_weight_decay": (True, "it is AdamW")}):
    """`torch.optim.AdamW` as a service."""
