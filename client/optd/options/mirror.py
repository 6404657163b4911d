"""`param_groups`: the options as the worker sees and changes them, in step with those of the server."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any

import numpy as np

from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import plain_option
from optd.params.rules import are_rules
from optd.schedules import Schedule
from optd_wire.values import GroupOptions, GroupUpdate, OptionValue, Single

ParamGroups = Sequence[MutableMapping[str, Any]]
Shown = Callable[[OptionValue], Any]
"""Turns an option's value into that of `param_groups`, where float32 is a type of numpy or torch."""


def as_numpy(value: OptionValue, make: Callable[[float], Any] = np.float32) -> Any:
    """An option's value in which `make` has converted numbers of float32; other numbers are Python's own."""
    if isinstance(value, tuple):
        return tuple(as_numpy(each, make) for each in value)
    return make(value) if isinstance(value, Single) else value


class OptionMirror:
    """The server's options as of the last reply.

    If a group's dict differs from it, a script or a scheduler has changed the dict: the change travels with the next
    push, based on the revision that was seen. Changes of other workers come with the reply, and are put into the dicts
    unless the same option was changed here.
    """

    def __init__(self, shown: Shown = as_numpy) -> None:
        self._known: list[GroupOptions] = []
        self._changed_here: list[set[str]] = []
        """By group, the options that were ever changed here."""
        self._shown = shown

    @property
    def known(self) -> Sequence[GroupOptions]:
        """The options by group, as of the last reply."""
        return self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, options: GroupOptions, group: MutableMapping[str, Any]) -> None:
        """Adds a group, and puts its options into the dict as the server resolved them."""
        self._known.append(options)
        self._changed_here.append(set())
        for name, value in _all(options).items():
            given = group.get(name)
            if isinstance(given, Schedule | Mapping) or are_rules(given) or not _same(group, name, value):
                group[name] = self._shown(value)

    def changes(self, groups: ParamGroups) -> tuple[GroupUpdate, ...]:
        """What has been changed in the dicts since."""
        updates = []
        for known, group, changed_here in zip(self._known, groups, self._changed_here, strict=False):
            if not _is_unchanged(known, group) and (changed := _changed(known, group)):
                changed_here.update(changed)
                updates.append(GroupUpdate(known.group, changed, known.revision))
        return tuple(updates)

    def everything(self, groups: ParamGroups) -> tuple[GroupUpdate, ...]:
        """All options of the groups, to replace whatever is in force, based on the revision that was seen."""
        return tuple(
            GroupUpdate(
                known.group,
                {name: plain_option(group[name]) for name in _all(known) if name in group},
                known.revision,
            )
            for known, group in zip(self._known, groups, strict=False)
        )

    def absorb(self, options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over the options of a reply; empty if none have changed."""
        for news in options:
            self.absorb_one(news, groups)

    def absorb_own(self, updates: Sequence[GroupUpdate], options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over the options in force after a push with `updates` whose success was learnt later.

        If another worker has changed an option that was changed here, the group stays as it was: the next push finds
        that conflict.
        """
        sent = {update.group: update.options for update in updates}
        for news in options:
            index = self._index(news.group)
            if index is None:
                continue
            known = self._known[index]
            now_ours = replace(known, options={**known.options, **sent.get(news.group, {})})
            expected, group = _all(now_ours), groups[index]
            theirs = {name for name, value in _all(news).items() if value != expected[name]}
            if not any(name in theirs and not _same(group, name, expected[name]) for name in expected):
                self._known[index] = now_ours
                self.absorb_one(news, groups)

    def _index(self, group: str) -> int | None:
        return next((i for i, known in enumerate(self._known) if known.group == group), None)

    def absorb_one(self, news: GroupOptions, groups: ParamGroups) -> None:
        """Takes over the options of one group; ignores groups that are not registered here."""
        index = self._index(news.group)
        if index is None or news.revision <= self._known[index].revision:
            return
        known, group = self._known[index], groups[index]
        before, now = _all(known), _all(news)
        for name, value in now.items():
            # A value that was changed here and not sent yet stays.
            if not _same(group, name, before[name]):
                self._changed_here[index].add(name)
            elif not _same(group, name, value):
                group[name] = self._shown(value)
        self._known[index] = news

    def begin_again(self, options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over the options of a job that went back to an older version, by group.

        What was ever changed here, by a script or a scheduler, stays in the dicts, and travels with the next push if
        the job has another value now. Everything else becomes what the job has.
        """
        for index, (news, known, group) in enumerate(zip(options, self._known, groups, strict=False)):
            stays = self._changed_here[index].union(_changed(known, group))
            for name, value in _all(news).items():
                if name not in stays and not _same(group, name, value):
                    group[name] = self._shown(value)
            self._known[index] = news


def _all(options: GroupOptions) -> dict[str, OptionValue]:
    """The options of a group, including those of every group, which replies omit at their defaults."""
    return {**GROUP_OPTIONS, **options.options}


def _is_unchanged(known: GroupOptions, group: Mapping[str, Any]) -> bool:
    """A fast check whether a group has these very objects; False if a value is only equal."""
    return all(map(is_, known.options.values(), map(group.get, known.options))) and not any(
        name in group and name not in known.options for name in GROUP_OPTIONS
    )


def _changed(known: GroupOptions, group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: plain_option(group[name])
        for name, value in _all(known).items()
        if name in group and not _same(group, name, value)
    }


def _same(group: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a group has a value; a missing entry of an option that every group has counts as the default."""
    if name not in group:
        return name in GROUP_OPTIONS and value == GROUP_OPTIONS[name]
    plain = plain_option(group[name])
    return bool(plain == value) and _precision(plain) == _precision(value)


def _precision(value: OptionValue) -> list[bool]:
    """Which of an option's numbers are float32: equal numbers may differ in that."""
    return [isinstance(each, Single) for each in (value if isinstance(value, tuple) else (value,))]
