"""optd: torch.optim as a service. The client.

    with optd.connect("127.0.0.1:50051", job="digits") as session:
        optimizer = optd.SGD({"w": w, "b": b}, lr=0.1, momentum=0.9, session=session)
        optimizer.step({"w": dw, "b": db})

For torch's parameters there is `optd.torch`; `optd.errors` has every error. The server is the package `optd_server`.

This file only exports names. To read the source, open `numpy/optimizer.py` first.
"""

from importlib.metadata import version as _version

from optd import errors, schedules, staleness
from optd.algorithms import (
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
from optd.local import local
from optd.numpy.optimizer import Optimizer
from optd.options.job_options import EMA, SWA, Gradients
from optd.session.connect import connect
from optd.session.server_jobs import delete_job, jobs
from optd.session.session import Session
from optd.state.restore import restore
from optd.transport.tls import TLS
from optd_wire.errors import OptdError
from optd_wire.values import Async, Bounded, Sync

__version__ = _version("optd")

__all__ = [
    "ASGD",
    "EMA",
    "LBFGS",
    "SGD",
    "SWA",
    "TLS",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Async",
    "Bounded",
    "Gradients",
    "Lion",
    "Muon",
    "NAdam",
    "OptdError",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Session",
    "SparseAdam",
    "Sync",
    "connect",
    "delete_job",
    "errors",
    "jobs",
    "local",
    "restore",
    "schedules",
    "staleness",
]
