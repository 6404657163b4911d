"""A class for each algorithm, with torch's arguments in torch's order. See `Optimizer` for `params` and the rest."""

from optd.algorithms.adam import Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam
from optd.algorithms.adaptive import Adadelta, Adafactor, Adagrad, RMSprop, Rprop
from optd.algorithms.descent import ASGD, SGD, Lion, Muon
from optd.algorithms.quasi_newton import LBFGS

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
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]
