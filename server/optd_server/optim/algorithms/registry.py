"""The algorithms that a server knows, by name. Adding one to this package is one line here."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from optd_server.optim import option, spelling
from optd_server.optim.algorithm import Algorithm, Elementwise, Iterative
from optd_server.optim.algorithms.adadelta import ADADELTA
from optd_server.optim.algorithms.adafactor import ADAFACTOR
from optd_server.optim.algorithms.adagrad import ADAGRAD
from optd_server.optim.algorithms.adam import ADAM
from optd_server.optim.algorithms.adamax import ADAMAX
from optd_server.optim.algorithms.adamw import ADAMW
from optd_server.optim.algorithms.asgd import ASGD
from optd_server.optim.algorithms.assign import ASSIGN
from optd_server.optim.algorithms.delayed_nesterov import DELAYED_NESTEROV
from optd_server.optim.algorithms.lbfgs import LBFGS
from optd_server.optim.algorithms.lion import LION
from optd_server.optim.algorithms.muon import MUON
from optd_server.optim.algorithms.nadam import NADAM
from optd_server.optim.algorithms.radam import RADAM
from optd_server.optim.algorithms.rmsprop import RMSPROP
from optd_server.optim.algorithms.rprop import RPROP
from optd_server.optim.algorithms.sgd import SGD
from optd_server.optim.algorithms.sparse_adam import SPARSE_ADAM
from optd_server.optim.group_options import GROUP_OPTIONS
from optd_server.optim.row_support import never

BUILT_IN: tuple[Algorithm, ...] = (
    SGD,
    ADAM,
    ADAMW,
    SPARSE_ADAM,
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
    LBFGS,
    LION,
    DELAYED_NESTEROV,
    ASSIGN,
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORD = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")
_TAKEN = {
    "option": {
        *("algorithm", "params", "name", "session", "server", "job", "worker", "zero_copy", "buffers"),
        *(each.name for each in GROUP_OPTIONS),
    },
    "state": {"step", "weights", "gradient", "ema", "swa"},
}
"""Names that clients see beside an algorithm's own options and state, and that these must not have."""
_known: dict[str, Algorithm] = {}
_packages: dict[str, str] = {}

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(_known)
"""All algorithms by name: those of this package, and those that plugins have registered."""


def register(algorithm: Algorithm, package: str = "") -> None:
    """Add an algorithm; `package` names its origin for people, and is empty for those of this package.

    Raises ValueError, whose message says what is wrong, if a declaration contradicts itself or another one.
    """
    name = algorithm.name
    if not _NAME.fullmatch(name):
        raise ValueError(f"its name must be 1 to 64 of a-z, 0-9 and _, beginning with a letter, got {name!r}")
    if name in _known:
        raise ValueError(f"there is an algorithm {name!r} already, of {_packages[name] or 'optd itself'}")
    for what, names in (
        ("option", [each.name for each in algorithm.options]),
        ("state", [field.name for field in algorithm.all_state]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"{name} declares the {what} {max(names, key=names.count)!r} twice")
        for each in names:
            if not _WORD.fullmatch(each):
                raise ValueError(f"{name}: the {what} must be 1 to 64 letters, digits and _, got {each!r}")
            if each in _TAKEN[what]:
                raise ValueError(f"{name}: the {what} {each!r} is taken: it means something to every group")
    _check_rows(algorithm)
    violation = option.check(algorithm, {})
    if violation is not None:
        raise ValueError(f"{name}: the default of {violation}")
    _known[name] = algorithm
    _packages[name] = package


def _check_rows(algorithm: Algorithm) -> None:
    """Raise ValueError if no step could follow the declaration of rows."""
    support = algorithm.rows
    if support is None:
        return
    if not isinstance(algorithm, Elementwise):
        if isinstance(algorithm, Iterative):
            return  # it gets rows as part of a whole gradient
        raise ValueError(f"{algorithm.name} takes rows, which parameterwise algorithms cannot")
    missing = set(support.zero) - {each.name for each in algorithm.options}
    if missing:
        raise ValueError(f"{algorithm.name} takes rows where {min(missing)!r} is 0, which is no option of it")
    seeded = next((field.name for field in algorithm.state if field.seeded), None)
    if seeded is not None and support.whole is never:
        raise ValueError(
            f"{algorithm.name} takes rows, but its {seeded!r} is set by a first step, which has not all rows"
        )


def package_of(name: str) -> str:
    """Return the package that an algorithm comes from; empty for this one."""
    return _packages[name]


for _algorithm in BUILT_IN:
    register(_algorithm)


def find(name: str) -> Algorithm | None:
    """Return the algorithm of exactly this name, or None."""
    return ALGORITHMS.get(name)


def nearest(name: str) -> str | None:
    """Return the name of the algorithm that `name` most likely means, or None."""
    return spelling.nearest(name, ALGORITHMS)
