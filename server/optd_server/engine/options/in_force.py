"""The options in force at a version: schedules applied, rules for names resolved to options of each parameter.

These are caches beside the groups. They return the same object while nothing changes, so a step can compare by
identity. Nothing here survives a restart.
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
"""How many scheduled options are cached, besides four for each parameter."""


class OptionSource(Protocol):
    """The groups that own the options."""

    options: list[GroupOptions]
    """A new list after each change."""
    layouts: list[GroupLayout]
    algorithms: list[Algorithm]
    parameters: int


class InForce:
    """The options in force, computed once and kept until something changes."""

    def __init__(self, source: OptionSource) -> None:
        self._source = source
        self._now_version = -1
        self._in_force: dict[int, tuple[Options, Options]] = {}
        """By the identity of options: them, and what is in force at `_now_version`."""
        self._before: dict[int, tuple[Options, Options]] = {}
        """The same at the version before."""
        self._dealt: dict[int, tuple[Slab, Sequence[Options], list[Options]]] = {}
        """By a slab's identity: it, the options in force, and what `dealt` made of them, if no group has rules."""
        self._by_name: dict[int, tuple[Options, list[Options]]] = {}
        self._matches: dict[int, Matches] = {}
        """By group, the parameters that each of its latest rules matches."""
        self._lasting: tuple[list[GroupOptions], list[Options]] | None = None
        """If nothing is scheduled: the list of options, and what is in force until that list is replaced."""

    def matches(self) -> list[Matches | None]:
        """Returns, by group, the parameters that each of its rules matches; None for a group without rules."""
        return [self.matching(index, group.options) for index, group in enumerate(self._source.options)]

    def matching(self, index: int, options: Options) -> Matches | None:
        """Returns the matches of one group if it had these options. Cached, because a group may have many names."""
        if RULES not in options:
            return None
        known = self._matches.get(index)
        if known is None or known.written != options[RULES]:
            known = match(options, [parameter.name for parameter in self._source.layouts[index].parameters])
            assert known is not None
            self._matches[index] = known
        return known

    def effective(self, version: int) -> list[Options]:
        """Returns, by group, the options in force for the step from `version` to the next.

        Groups that share an options object share the result. If nothing is scheduled, the result is that object itself.
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
        """Returns what `effective` would return after these changes of options, given as (group, options)."""
        found = list(self.effective(version))
        for index, changed in changes:
            found[index] = effective(changed.options, version)
        return found

    def scheduled(self, version: int) -> tuple[EffectiveOptions, ...]:
        """Returns the options whose values schedules change in the step from `version`, by group."""
        found = self.effective(version)
        if not self.is_scheduled:
            return ()
        pairs = zip(self._source.options, found, strict=True)
        changed = [(group.group, changed_options(group.options, now)) for group, now in pairs]
        return tuple(EffectiveOptions(name, options) for name, options in changed if options)

    @property
    def is_scheduled(self) -> bool:
        """Whether schedules changed the options of some group when `effective` was last called."""
        return self._lasting is None

    def _now(self, options: Options, version: int) -> Options:
        """Applies schedules to options at a version; returns the same object if there are none."""
        if self._now_version != version:
            self._before, self._in_force, self._now_version = self._in_force, {}, version
        known = self._in_force.get(id(options))
        if known is None:
            found, before = effective(options, version), self._before.get(id(options))
            # A schedule whose value has not moved gives the same object, too.
            same = before is not None and before[0] is options and before[1] == found
            if len(self._in_force) > MOST_REMEMBERED + 4 * self._source.parameters:
                self._in_force = {}  # options have changed many times without a step in between
            known = self._in_force[id(options)] = before if same and before is not None else (options, found)
        return known[1]

    def dealt(self, version: int, slab: Slab) -> tuple[list[Options], list[int] | None]:
        """Returns the options of a slab's parameters in the step from `version`, and how many in a row have each.

        The counts are None if each entry belongs to a whole group of the slab.
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
        """Returns the options of one parameter in the step from `version` to the next."""
        by_name = self.by_name(place.group)
        return self.effective(version)[place.group] if by_name is None else self._now(by_name[place.member], version)

    def by_name(self, group: int) -> list[Options] | None:
        """Returns the options of each parameter of a group, in its order; None if the group has no rules."""
        options = self._source.options[group].options
        if RULES not in options:
            return None
        known = self._by_name.get(group)
        if known is None or known[0] is not options:
            matches = self.matching(group, options)
            assert matches is not None
            known = self._by_name[group] = (options, deal(self._source.algorithms[group], options, matches))
        return known[1]
