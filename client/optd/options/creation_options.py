"""The options of a job as a whole, from the arguments of `optd.connect`."""

from collections.abc import Iterable
from typing import Any

from optd.options.job_options import EMA, SWA, Averages, Gradients
from optd_wire.errors import InvalidRequest
from optd_wire.values import OptionValue


def options_of(gradients: Gradients | None, averages: Averages | None) -> dict[str, OptionValue]:
    """The options that differ from the defaults; raises `InvalidRequest` for an argument of another type."""
    listed = averages if isinstance(averages, Iterable) and not isinstance(averages, str) else [averages]
    kept: list[Any] = [] if averages is None else list(listed)
    if not isinstance(gradients, Gradients | None):
        raise InvalidRequest(problem=f"gradients must be optd.Gradients(...), got {gradients!r}")
    for each in kept:
        if not isinstance(each, EMA | SWA):
            raise InvalidRequest(
                problem=f"averages must be optd.EMA(...), optd.SWA(...) or a list of them, got {each!r}"
            )
        if len([other for other in kept if type(other) is type(each)]) > 1:
            raise InvalidRequest(problem=f"averages must be one of a kind, got several optd.{type(each).__name__}")
    given = (*kept, *([] if gradients is None else [gradients]))
    return {name: value for each in given for name, value in each.options().items()}
