"""The algorithms that a server knows, by name. Adding one is one line here."""

from collections.abc import Mapping
from types import MappingProxyType

from optd_server.optim import option, spelling
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.algorithms.adadelta import ADADELTA
from optd_server.optim.algorithms.adafactor import ADAFACTOR
from optd_server.optim.algorithms.adagrad import ADAGRAD
from optd_server.optim.algorithms.adam import ADAM
from optd_server.optim.algorithms.adamax import ADAMAX
from optd_server.optim.algorithms.adamw import ADAMW
from optd_server.optim.algorithms.asgd import ASGD
from optd_server.optim.algorithms.lion import LION
from optd_server.optim.algorithms.muon import MUON
from optd_server.optim.algorithms.nadam import NADAM
from optd_server.optim.algorithms.radam import RADAM
from optd_server.optim.algorithms.rmsprop import RMSPROP
from optd_server.optim.algorithms.rprop import RPROP
from optd_server.optim.algorithms.sgd import SGD


def _by_name(*algorithms: Algorithm) -> Mapping[str, Algorithm]:
    """Index algorithms by name, refusing a declaration that contradicts itself."""
    for algorithm in algorithms:
        violation = option.check(algorithm, {})
        if violation is not None:
            raise ValueError(f"{algorithm.name}: the default of {violation}")
    by_name = {algorithm.name: algorithm for algorithm in algorithms}
    if len(by_name) != len(algorithms):
        raise ValueError("two algorithms have one name")
    return MappingProxyType(by_name)


ALGORITHMS: Mapping[str, Algorithm] = _by_name(
    SGD,
    ADAM,
    ADAMW,
    ADAGRAD,
    ADADELTA,
    ADAMAX,
    NADAM,
    RADAM,
    RMSPROP,
    RPROP,
    ASGD,
    ADAFACTOR,
    MUON,
    LION,
)


def find(name: str) -> Algorithm | None:
    """Return the algorithm of exactly this name, or None."""
    return ALGORITHMS.get(name)


def nearest(name: str) -> str | None:
    """Return the name of the algorithm that `name` most likely means, or None."""
    return spelling.nearest(name, ALGORITHMS)
