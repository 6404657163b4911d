"""Every error that optd raises; see `optd_wire.errors` for the tree."""

from optd_wire import errors as _errors
from optd_wire.errors import *  # noqa: F403

__all__ = sorted(  # noqa: PLE0605 - the tree is listed once, where it is defined
    name for name, value in vars(_errors).items() if isinstance(value, type) and issubclass(value, _errors.OptdError)
)
