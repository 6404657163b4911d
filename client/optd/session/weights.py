"""The weights that `session.pull()` returns."""

from collections.abc import Mapping

from optd.params.flat_view import Array
from optd_wire.errors import InvalidRequest

ANSWER_SECONDS = 5.0
"""How long an answer may take after the server has waited in vain for as long as the caller wants to."""


class Weights(dict[str, Array]):
    """Arrays by parameter name, all of one version of the job."""

    def __init__(self, arrays: Mapping[str, Array], version: int) -> None:
        super().__init__(arrays)
        self.version = version
        """The version that they are of."""


def check_min_version(version: object) -> int:
    """The version, if it is one; raises `InvalidRequest`."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InvalidRequest(problem=f"a version must be an integer of at least 0, got {version!r}")
    return version
