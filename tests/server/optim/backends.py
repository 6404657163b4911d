"""Both backends and the algorithms whose arithmetic they do, for tables and properties over them."""

from optd_server.optim.algorithm import Elementwise
from optd_server.optim.algorithms.registry import ALGORITHMS
from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.backends.registry import choose

COMPILED = choose("numba")
BACKENDS: dict[str, Backend] = {"numpy": BLOCKED, "numba": COMPILED}
ELEMENTWISE = {name: algorithm for name, algorithm in ALGORITHMS.items() if isinstance(algorithm, Elementwise)}
