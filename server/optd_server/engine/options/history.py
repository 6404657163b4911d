"""Which options of a job have changed, when and by whom: the last ones in full, and of each option its last one."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from optd_server.optim.group_options import GROUP_OPTIONS
from optd_wire.values import GroupOptions, GroupUpdate, JobOptions, OptionChange, Options, OptionValue

KEPT = 256
# Rules may be long texts; what is kept of one is bounded.
LONGEST = 500
_DEFAULTS: Options = {option.name: option.default for option in GROUP_OPTIONS}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for changes, and when."""

    wall: float
    """Seconds of the epoch."""
    worker: str = ""
    """Whose push or state they come with; empty for a call of its own."""


class OptionChanges:
    """Bounded: by `KEPT`, and by the options that there are."""

    def __init__(self) -> None:
        self._numbers = count()
        self._recent: deque[tuple[int, OptionChange]] = deque(maxlen=KEPT)
        self._last: dict[tuple[str, str], tuple[int, OptionChange]] = {}
        self._counts: Counter[str] = Counter()

    def of(self, group: str | None = None) -> tuple[OptionChange, ...]:
        """Those of a group, of the job as a whole (""), or all (None), oldest first."""
        known = dict([*self._last.values(), *self._recent])
        return tuple(known[number] for number in sorted(known) if group in (None, known[number].group))

    def forgotten(self, group: str | None = None) -> int:
        """How many more there have been than `of` gives."""
        total = self._counts.total() if group is None else self._counts[group]
        return total - len(self.of(group))

    def note_group(self, before: GroupOptions, after: GroupOptions, origin_of: Callable[[str], Origin]) -> None:
        """Notes what differs in a group's options; `origin_of` an option's name tells where its change is from."""
        old, new = {**_DEFAULTS, **before.options}, {**_DEFAULTS, **after.options}
        for name in {**after.options, **_DEFAULTS}:
            value = new[name]
            if old[name] != value:
                self._add(after.since_version, after.group, name, old[name], value, origin_of(name))

    def note_job(self, before: JobOptions, after: JobOptions, origin: Origin) -> None:
        """Notes what differs in the options of the job as a whole."""
        for name, value in after.options.items():
            if before.options[name] != value:
                self._add(after.since_version, "", name, before.options[name], value, origin)

    def _add(
        self, version: int, group: str, option: str, before: OptionValue, after: OptionValue, origin: Origin
    ) -> None:
        change = OptionChange(
            unix_ms=int(origin.wall * 1000),
            version=version,
            group=group,
            option=option,
            before=_bounded(before),
            after=_bounded(after),
            worker=origin.worker,
        )
        numbered = next(self._numbers), change
        self._recent.append(numbered)
        self._last[group, option] = numbered
        self._counts[group] += 1


def origins(updates: Sequence[tuple[GroupUpdate, Origin]], group: str) -> Callable[[str], Origin]:
    """Tells of each option of a group from where its change is, of several updates that follow one another."""
    own = [(update, origin) for update, origin in updates if update.group == group]

    def origin_of(option: str) -> Origin:
        return next((origin for update, origin in reversed(own) if option in update.options), own[-1][1])

    return origin_of


def _bounded(value: OptionValue) -> OptionValue:
    return value[: LONGEST - 1] + "…" if isinstance(value, str) and len(value) > LONGEST else value
