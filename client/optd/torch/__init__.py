"""optd for torch: the classes of `torch.optim`, with the weights on a server.

    from optd.torch import SGD

    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, server="127.0.0.1:50051", job="digits")
    for batch in batches:
        optimizer.zero_grad()
        loss(model(batch)).backward()
        optimizer.step()  # push, step on the server, pull: the model now holds the new weights

With OPTD_SERVER set, the import line is all that changes in a script. See `optd.torch.optimizer.Served`.

Everything that knows torch is in this folder; `optd.registration` has what it shares with the numpy face. To read the
source, open `optimizer.py` first, then `served_steps.py`.
"""

try:
    import torch as _torch  # noqa: F401 - to say by name what is missing
except ModuleNotFoundError as problem:
    if problem.name != "torch":
        raise
    raise ImportError("optd.torch needs torch, which is not installed: pip install 'optd[torch]'") from problem

from optd.torch.algorithms import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from optd.torch.follower import Follower
from optd.torch.named import Optimizer

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
    "Follower",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]
