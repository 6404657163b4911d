"""The history of a job's options: the most recent changes in full, and the last change of each option."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from optd_server.optim.group_options import GROUP_OPTIONS
from optd_wire.values import GroupOptions, GroupUpdate, JobOptions, OptionChange, Options, OptionValue, Policy

KEPT = 256
"""How many recent changes are kept."""
LONGEST = 500
"""How many characters of a value are kept: rules and schedules may be long texts."""
_DEFAULTS: Options = {option.name: option.default for option in GROUP_OPTIONS}

Numbered = tuple[int, OptionChange]
"""A change, after its number: how many changes the job had before it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a change, and when."""

    wall: float
    """Seconds since the epoch."""
    worker: str = ""
    """The worker whose push or write of state carried the change; empty if a call of its own asked for it."""


@dataclass(slots=True)
class OptionHistory:
    """The changes of one job's options. Its size is bounded by `KEPT` and by the number of options."""

    recent: deque[Numbered] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: dict[tuple[str, str], Numbered] = field(default_factory=dict)
    """The last change of each option, by group (empty: the job as a whole) and option."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many changes each group has had."""

    def copy(self) -> "OptionHistory":
        """Return an equal history that shares nothing with this one."""
        return OptionHistory(self.recent.copy(), self.last.copy(), self.counts.copy())

    def of(self, group: str | None = None) -> tuple[OptionChange, ...]:
        """Return the changes of a group, of the job as a whole (""), or of everything (None), oldest first."""
        known = dict([*self.last.values(), *self.recent])
        return tuple(known[number] for number in sorted(known) if group in (None, known[number].group))

    def forgotten(self, group: str | None = None) -> int:
        """Return how many changes are no longer kept, and so are missing from `of`."""
        total = self.counts.total() if group is None else self.counts[group]
        return total - len(self.of(group))

    def add(self, changes: Iterable[OptionChange]) -> None:
        """Append changes in order."""
        for change in changes:
            numbered = self.counts.total(), change
            self.recent.append(numbered)
            self.last[change.group, change.option] = numbered
            self.counts[change.group] += 1


def changes_of_group(
    before: GroupOptions, after: GroupOptions, origin_of: Callable[[str], Origin]
) -> Iterator[OptionChange]:
    """Yield the differences between a group's options; `origin_of` maps the name of an option to its origin."""
    old, new = {**_DEFAULTS, **before.options}, {**_DEFAULTS, **after.options}
    for name in {**after.options, **_DEFAULTS}:
        if old[name] != new[name]:
            yield _change(after.since_version, after.group, name, old[name], new[name], origin_of(name))


def changes_of_job(before: JobOptions, after: JobOptions, origin: Origin) -> Iterator[OptionChange]:
    """Yield the differences between the options of the job as a whole."""
    for name, value in after.options.items():
        if before.options[name] != value:
            yield _change(after.since_version, "", name, before.options[name], value, origin)


def origins(updates: Sequence[tuple[GroupUpdate, Origin]], group: str) -> Callable[[str], Origin]:
    """Return a function that maps an option of a group to the origin of the last update that sets it."""
    own = [(update, origin) for update, origin in updates if update.group == group]

    def origin_of(option: str) -> Origin:
        return next((origin for update, origin in reversed(own) if option in update.options), own[-1][1])

    return origin_of


def _change(
    version: int, group: str, option: str, before: OptionValue, after: OptionValue, origin: Origin
) -> OptionChange:
    return OptionChange(
        unix_ms=int(origin.wall * 1000),
        version=version,
        group=group,
        option=option,
        before=_bounded(before),
        after=_bounded(after),
        worker=origin.worker,
    )


def _bounded(value: OptionValue) -> OptionValue:
    return value[: LONGEST - 1] + "…" if isinstance(value, str) and len(value) > LONGEST else value


def policy_change(before: Policy, after: Policy, version: int, wall: float) -> OptionChange:
    """Return the entry of a change of the policy, which is an option of the job as a whole to those who read it."""
    return OptionChange(int(wall * 1000), version, "", "policy", repr(before), repr(after), "")
