"""Options that every group may have, whatever its algorithm. What they mean is declared by the server."""

from typing import TypedDict

from optd.params.rules import Rules
from optd.schedules import Schedule, Schedules
from optd_wire.values import OptionValue

GROUP_OPTIONS: dict[str, OptionValue] = {
    "lr_schedule": None,
    "momentum_schedule": None,
    "schedules": None,
    "schedule_start": 0,
    "clip_norm": None,
    "clip_value": None,
    "master_weights": False,
    "lookahead_steps": None,
    "lookahead_alpha": 0.5,
    "rules": None,
}
"""Their names, with the values that count where a group does not have them."""


class GroupOptionArguments(TypedDict, total=False):
    """The same, as arguments of an optimizer: for all groups that do not have their own."""

    lr_schedule: Schedule | str | None
    momentum_schedule: Schedule | str | None
    schedules: Schedules | str | None
    schedule_start: int
    clip_norm: float | None
    clip_value: float | None
    master_weights: bool
    lookahead_steps: int | None
    lookahead_alpha: float
    rules: Rules | str | None
