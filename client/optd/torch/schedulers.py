"""The warning about a scheduler of torch together with a schedule of the server."""

from typing import Any

from optd.options.effective import Effective


def warn_of_scheduler(optimizer: Any, effective: Effective) -> None:
    """Warns once if a scheduler of torch was made for an optimizer whose `lr` follows a schedule of the server.

    Torch's schedulers wrap the `step` of their optimizer. One that does not, `ReduceLROnPlateau`, is found when it
    changes `lr`.
    """
    if not getattr(optimizer.step, "_wrapped_by_lr_sched", False):
        return
    found = effective.schedule_of("lr")
    if found is not None:
        group, schedule = found
        effective.warn_of_two(group, "lr", schedule, "has a scheduler of torch's")
