"""What follows from the options of groups: schedules at a version, rules for names, options by parameter.

Caches beside the groups: a step sees at a glance what is as it was, and nothing here survives.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from optd_server.engine.options.by_name import deal, match
from optd_server.optim.algorithm import Algorithm
from optd_server.optim.group_options import effective
from optd_server.optim.rules import RULES, Matches
from optd_server.store.extents import Slab
from optd_server.store.rows import RowPlace
from optd_server.store.versions import changed_options
from optd_wire.layout import GroupLayout
from optd_wire.values import EffectiveOptions, GroupOptions, Options

MOST_REMEMBERED = 64
"""How many options are remembered with what schedules make of them, beside four for each parameter."""


class OptionSource(Protocol):
    """The groups whose options these are."""

    options: list[GroupOptions]
    """Another list with each change."""
    layouts: list[GroupLayout]
    algorithms: list[Algorithm]
    parameters: int


class InForce:
    """The options that are in force, worked out once and kept until something changes."""

    def __init__(self, source: OptionSource) -> None:
        self._source = source
        self._now_version = -1
        self._in_force: dict[int, tuple[Options, Options]] = {}
        """What schedules make of options at that version."""
        self._before: dict[int, tuple[Options, Options]] = {}
        """And at the one before it."""
        self._dealt: dict[int, tuple[Slab, Sequence[Options], list[Options]]] = {}
        """By a slab's identity what `dealt` gave of it, without rules, and the list of options that it is from."""
        self._by_name: dict[int, tuple[Options, list[Options]]] = {}
        self._matches: dict[int, Matches] = {}
        """By group, which of the rules that it had last are for which of its parameters."""
        self._lasting: tuple[list[GroupOptions], list[Options]] | None = None
        """The list of options, and what is in force until it changes, if nothing is scheduled."""

    def matches(self) -> list[Matches | None]:
        """By group, which of its rules are for which of its parameters; None where it has none."""
        return [self.matching(index, group.options) for index, group in enumerate(self._source.options)]

    def matching(self, index: int, options: Options) -> Matches | None:
        """As `matches` of one group, under some options. Worked out once: there may be many names."""
        if RULES not in options:
            return None
        known = self._matches.get(index)
        if known is None or known.written != options[RULES]:
            known = match(options, [parameter.name for parameter in self._source.layouts[index].parameters])
            assert known is not None
            self._matches[index] = known
        return known

    def effective(self, version: int) -> list[Options]:
        """By group, the options that the step from `version` to the next is made with.

        Groups that share options share what follows from them, and where nothing is scheduled it is the options
        themselves: a step sees at a glance what is as it was.
        """
        if (
            self._lasting is not None
            and self._lasting[0] is self._source.options
            and len(self._lasting[1]) == len(self._source.options)
        ):
            return self._lasting[1]
        found = [self._now(group.options, version) for group in self._source.options]
        unscheduled = all(group.options is now for group, now in zip(self._source.options, found, strict=True))
        self._lasting = (self._source.options, found) if unscheduled else None
        return found

    def effective_with(self, changes: Iterable[tuple[int, GroupOptions]], version: int) -> list[Options]:
        """As `effective`, if these options of groups were in force."""
        found = list(self.effective(version))
        for index, changed in changes:
            found[index] = effective(changed.options, version)
        return found

    def scheduled(self, version: int) -> tuple[EffectiveOptions, ...]:
        """The options that schedules change in the step from `version`, of the groups that have such."""
        found = self.effective(version)
        if not self.is_scheduled:
            return ()
        pairs = zip(self._source.options, found, strict=True)
        changed = [(group.group, changed_options(group.options, now)) for group, now in pairs]
        return tuple(EffectiveOptions(name, options) for name, options in changed if options)

    @property
    def is_scheduled(self) -> bool:
        """Whether schedules made some group's options others, when `effective` was last asked."""
        return self._lasting is None

    def _now(self, options: Options, version: int) -> Options:
        """What schedules make of options at a version; these very ones where there are none."""
        if self._now_version != version:
            self._before, self._in_force, self._now_version = self._in_force, {}, version
        known = self._in_force.get(id(options))
        if known is None:
            found, before = effective(options, version), self._before.get(id(options))
            # A schedule that stands still gives the same object, too.
            same = before is not None and before[0] is options and before[1] == found
            if len(self._in_force) > MOST_REMEMBERED + 4 * self._source.parameters:
                self._in_force = {}  # of options that have been changed many times, and no step between
            known = self._in_force[id(options)] = before if same and before is not None else (options, found)
        return known[1]

    def dealt(self, version: int, slab: Slab) -> tuple[list[Options], list[int] | None]:
        """The options of a slab's parameters in the step from `version`, and of how many in a row each is.

        None: of as many as the slab's groups have there.
        """
        groups = self.effective(version)
        known = self._dealt.get(id(slab))
        if known is not None and known[0] is slab and known[1] is groups:
            return known[2], None
        if all(self.by_name(group) is None for group in slab.groups):
            self._dealt[id(slab)] = slab, groups, [groups[group] for group in slab.groups]
            return self._dealt[id(slab)][2], None
        options: list[Options] = []
        counts: list[int] = []
        for group, part in zip(slab.groups, slab.parameter_counts.tolist(), strict=True):
            by_name = self.by_name(group)
            if by_name is None:
                options.append(groups[group])
                counts.append(part)
                continue
            segment = next(segment for segment in self._source.layouts[group].segments if segment.dtype == slab.dtype)
            for member in segment.members:
                now = self._now(by_name[member], version)
                if counts and options[-1] is now:
                    counts[-1] += 1
                else:
                    options.append(now)
                    counts.append(1)
        return options, counts

    def options_of(self, version: int, place: RowPlace) -> Options:
        """The options of one parameter in the step from `version` to the next."""
        by_name = self.by_name(place.group)
        return self.effective(version)[place.group] if by_name is None else self._now(by_name[place.member], version)

    def by_name(self, group: int) -> list[Options] | None:
        """The options of a group's parameters in the order of its list; None where it has no rules for names."""
        options = self._source.options[group].options
        if RULES not in options:
            return None
        known = self._by_name.get(group)
        if known is None or known[0] is not options:
            matches = self.matching(group, options)
            assert matches is not None
            known = self._by_name[group] = (options, deal(self._source.algorithms[group], options, matches))
        return known[1]
