"""Both backends, for tables and properties over them."""

from optd_server.optim.backends.base import Backend
from optd_server.optim.backends.blocked import BLOCKED
from optd_server.optim.backends.registry import choose

COMPILED = choose("numba")
BACKENDS: dict[str, Backend] = {"numpy": BLOCKED, "numba": COMPILED}
