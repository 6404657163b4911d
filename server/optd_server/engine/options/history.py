"""Which options of a job have changed, when and by whom: the last changes in full, and the last one of each option."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from optd_server.optim.group_options import GROUP_OPTIONS
from optd_wire.values import GroupOptions, GroupUpdate, JobOptions, OptionChange, Options, OptionValue

KEPT = 256
# Rules may be long texts; what is kept of one is bounded.
LONGEST = 500
_DEFAULTS: Options = {option.name: option.default for option in GROUP_OPTIONS}

Numbered = tuple[int, OptionChange]
"""A change, and how many the job has had before it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for changes, and when."""

    wall: float
    """Seconds since the epoch."""
    worker: str = ""
    """The worker whose push or state they come with; empty for a call of its own."""


@dataclass(slots=True)
class OptionHistory:
    """Bounded by `KEPT`, and by the number of options that there are."""

    recent: deque[Numbered] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: dict[tuple[str, str], Numbered] = field(default_factory=dict)
    """By group (empty: the job as a whole) and option."""
    counts: Counter[str] = field(default_factory=Counter)
    """By group, how many changes there have been."""

    def copy(self) -> "OptionHistory":
        """An equal history."""
        return OptionHistory(self.recent.copy(), self.last.copy(), self.counts.copy())

    def of(self, group: str | None = None) -> tuple[OptionChange, ...]:
        """The changes of a group, of the job as a whole (""), or all (None), oldest first."""
        known = dict([*self.last.values(), *self.recent])
        return tuple(known[number] for number in sorted(known) if group in (None, known[number].group))

    def forgotten(self, group: str | None = None) -> int:
        """How many more there have been than `of` gives."""
        total = self.counts.total() if group is None else self.counts[group]
        return total - len(self.of(group))

    def add(self, changes: Iterable[OptionChange]) -> None:
        """Notes changes, in their order."""
        for change in changes:
            numbered = self.counts.total(), change
            self.recent.append(numbered)
            self.last[change.group, change.option] = numbered
            self.counts[change.group] += 1


def changes_of_group(
    before: GroupOptions, after: GroupOptions, origin_of: Callable[[str], Origin]
) -> Iterator[OptionChange]:
    """The differences between a group's options; `origin_of` an option's name tells who changed it."""
    old, new = {**_DEFAULTS, **before.options}, {**_DEFAULTS, **after.options}
    for name in {**after.options, **_DEFAULTS}:
        if old[name] != new[name]:
            yield _change(after.since_version, after.group, name, old[name], new[name], origin_of(name))


def changes_of_job(before: JobOptions, after: JobOptions, origin: Origin) -> Iterator[OptionChange]:
    """The differences between options of the job as a whole."""
    for name, value in after.options.items():
        if before.options[name] != value:
            yield _change(after.since_version, "", name, before.options[name], value, origin)


def origins(updates: Sequence[tuple[GroupUpdate, Origin]], group: str) -> Callable[[str], Origin]:
    """Tells who changed each option of a group, of several updates that follow one another."""
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
