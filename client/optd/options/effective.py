"""`effective_lr` and the like in `param_groups`: the values that schedules give options in the next step.

Such an entry exists while its option has a schedule, and is as of the last reply. It is never sent: a value that a
script writes into it is replaced, with a warning.
"""

import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from optd.caller_warnings import warn_caller
from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import plain_option
from optd_wire.values import EffectiveOptions, GroupOptions, GroupUpdate, Options, OptionValue

PREFIX = "effective_"
SCHEDULE_OPTIONS = ("lr_schedule", "momentum_schedule", "schedules")
ParamGroups = Sequence[MutableMapping[str, Any]]


def scheduled(options: Options) -> dict[str, str]:
    """The options of a group that have a schedule, with its text: `lr_schedule='cosine(steps=10)'`."""
    momentum = "momentum" if "momentum" in options else "betas"
    found = {
        option: f"{schedule}={options[schedule]!r}"
        for option, schedule in (("lr", "lr_schedule"), (momentum, "momentum_schedule"))
        if options.get(schedule) is not None
    }
    written = options.get("schedules")
    if isinstance(written, str):
        for name, text in json.loads(written).items():
            found.setdefault(name.partition("[")[0], f"schedules[{name!r}]={text!r}")
    return found


class Effective:
    """The entries of the groups' dicts, in step with the server's replies."""

    def __init__(self) -> None:
        self._known: Sequence[GroupOptions] = ()
        self._scheduled: list[dict[str, str]] = []
        self._shown: list[dict[str, OptionValue]] = []
        self._has_warned = False

    @property
    def any(self) -> bool:
        """Whether there is an entry, or must be one."""
        return any(self._scheduled) or any(self._shown)

    def read(self, known: Sequence[GroupOptions]) -> None:
        """Notes which of the server's options have a schedule."""
        self._known = list(known)
        self._scheduled = [scheduled(group.options) for group in known]
        self._shown += [{} for _ in self._scheduled[len(self._shown) :]]

    def schedule_of(self, option: str) -> tuple[str, str] | None:
        """A group in which an option has a schedule, and what sets it."""
        pairs = zip(self._known, self._scheduled, strict=True)
        return next(((group.group, found[option]) for group, found in pairs if option in found), None)

    def show(self, told: Sequence[EffectiveOptions], groups: ParamGroups) -> None:
        """Puts the entries into the groups; an option that is not in `told` has its own value now."""
        by_group = {each.group: each.options for each in told}
        for index, (known, found) in enumerate(zip(self._known, self._scheduled, strict=True)):
            if not found and not self._shown[index]:
                continue
            now = by_group.get(known.group, {})
            defaults = {**GROUP_OPTIONS, **known.options}
            entries = {PREFIX + option: now.get(option, defaults.get(option)) for option in found}
            self._put(index, entries, groups[index])

    def _put(self, index: int, entries: dict[str, OptionValue], group: MutableMapping[str, Any]) -> None:
        before, self._shown[index] = self._shown[index], entries
        for key in before.keys() - entries.keys():
            group.pop(key, None)
        for key, value in entries.items():
            if key in group and plain_option(group[key]) != before.get(key, value):
                option = key.removeprefix(PREFIX)
                warn_caller(
                    f"param_groups[{index}][{key!r}] tells what the schedule of {option!r} makes of it and is not "
                    f"sent: {group[key]!r} is replaced by {value!r}. To change it, set {option!r}, which the schedule "
                    f"multiplies, or {self._scheduled[index][option].partition('=')[0]}"
                )
            group[key] = value

    def saved(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The groups without these entries, for a state dict."""
        shown = [*self._shown, *[{}] * len(groups)]
        return [
            {key: value for key, value in group.items() if key not in own}
            for group, own in zip(groups, shown, strict=False)
        ]

    def check_changes(self, updates: Sequence[GroupUpdate]) -> None:
        """Warns once if an option is changed here while a schedule of the server multiplies it."""
        if self._has_warned:
            return
        by_group = {group.group: found for group, found in zip(self._known, self._scheduled, strict=True)}
        for update in updates:
            if any(option in update.options for option in SCHEDULE_OPTIONS):
                continue
            for option in update.options.keys() & by_group.get(update.group, {}).keys():
                self.warn_of_two(update.group, option, by_group[update.group][option], "is changed here")
                return

    def warn_of_two(self, group: str, option: str, schedule: str, what: str) -> None:
        """Warns once that an option follows two schedules; `what` describes the one here."""
        if self._has_warned:
            return
        self._has_warned = True
        own = schedule.partition("=")[0]
        warn_caller(
            f"{option} of group {group!r} {what} while the server's {schedule} multiplies it: a step takes the "
            f"product. Use one of them: leave {own} out (or set it to None in param_groups), or do not step a "
            "scheduler here"
        )
