"""A class for each algorithm: torch's own with `Served` in front of it; one module each.

`make classes` generates them, and this file, from the server's declarations (`client/generation`). What
they all do is in `Served`: open `optd/torch/optimizer.py` first.
"""

from optd.torch.algorithms.adadelta import Adadelta
from optd.torch.algorithms.adafactor import Adafactor
from optd.torch.algorithms.adagrad import Adagrad
from optd.torch.algorithms.adam import Adam
from optd.torch.algorithms.adamax import Adamax
from optd.torch.algorithms.adamw import AdamW
from optd.torch.algorithms.asgd import ASGD
from optd.torch.algorithms.delayed_nesterov import DelayedNesterov
from optd.torch.algorithms.lbfgs import LBFGS
from optd.torch.algorithms.lion import Lion
from optd.torch.algorithms.muon import Muon
from optd.torch.algorithms.nadam import NAdam
from optd.torch.algorithms.radam import RAdam
from optd.torch.algorithms.rmsprop import RMSprop
from optd.torch.algorithms.rprop import Rprop
from optd.torch.algorithms.sgd import SGD
from optd.torch.algorithms.sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DelayedNesterov",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]
