"""A class for each algorithm, with torch's arguments in torch's order; one module each.

`make classes` generates them, and this file, from the server's declarations (`client/generation`). Only
`lbfgs_base.py` and `unknown_options.py` are written by hand. All classes derive from `optd.Optimizer`: open
`optd/numpy/optimizer.py` first.
"""

from optd.algorithms.adadelta import Adadelta
from optd.algorithms.adafactor import Adafactor
from optd.algorithms.adagrad import Adagrad
from optd.algorithms.adam import Adam
from optd.algorithms.adamax import Adamax
from optd.algorithms.adamw import AdamW
from optd.algorithms.asgd import ASGD
from optd.algorithms.delayed_nesterov import DelayedNesterov
from optd.algorithms.lbfgs import LBFGS
from optd.algorithms.lion import Lion
from optd.algorithms.muon import Muon
from optd.algorithms.nadam import NAdam
from optd.algorithms.radam import RAdam
from optd.algorithms.rmsprop import RMSprop
from optd.algorithms.rprop import Rprop
from optd.algorithms.sgd import SGD
from optd.algorithms.sparse_adam import SparseAdam

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
