"""`param_groups`: the options as the worker sees and changes them, kept level with those that the server holds."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from operator import is_
from typing import Any

import numpy as np

from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import plain_option
from optd.params.rules import are_rules
from optd.schedules import Schedule
from optd_wire.single import Single
from optd_wire.values import GroupOptions, GroupUpdate, OptionValue

ParamGroups = Sequence[MutableMapping[str, Any]]
Shown = Callable[[OptionValue], Any]
"""Makes of an option's value what `param_groups` has: a float32 there is what its face computes with as such."""


def as_numpy(value: OptionValue, make: Callable[[float], Any] = np.float32) -> Any:
    """An option's value with what `make` makes of numbers of float32; all others are Python's own."""
    if isinstance(value, tuple):
        return tuple(as_numpy(each, make) for each in value)
    return make(value) if isinstance(value, Single) else value


class OptionMirror:
    """What the server's options were when this worker last heard of them.

    A group's dict that differs from it has been changed here, by hand or by a scheduler: the change travels with the
    next push, made on the revision that was seen. What others have changed comes back with the reply, and is put into
    the dicts wherever they have not been changed here.
    """

    def __init__(self, shown: Shown = as_numpy) -> None:
        self._known: list[GroupOptions] = []
        self._shown = shown

    @property
    def known(self) -> Sequence[GroupOptions]:
        """The options by group, as the server last told them."""
        return self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, options: GroupOptions, group: MutableMapping[str, Any]) -> None:
        """Takes a group over as the server resolved it."""
        self._known.append(options)
        for name, value in _all(options).items():
            given = group.get(name)
            if isinstance(given, Schedule | Mapping) or are_rules(given) or not _same(group, name, value):
                group[name] = self._shown(value)

    def changes(self, groups: ParamGroups) -> tuple[GroupUpdate, ...]:
        """What has been changed here since."""
        return tuple(
            GroupUpdate(known.group, changed, known.revision)
            for known, group in zip(self._known, groups, strict=False)
            if not _is_unchanged(known, group) and (changed := _changed(known, group))
        )

    def everything(self, groups: ParamGroups) -> tuple[GroupUpdate, ...]:
        """All options of the groups, for those that replace whatever is in force; made on what was seen, too."""
        return tuple(
            GroupUpdate(
                known.group,
                {name: plain_option(group[name]) for name in _all(known) if name in group},
                known.revision,
            )
            for known, group in zip(self._known, groups, strict=False)
        )

    def absorb(self, options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over what a reply told; empty where nothing has changed."""
        for news in options:
            self.absorb_one(news, groups)

    def absorb_own(self, updates: Sequence[GroupUpdate], options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over what is in force after a push that brought `updates`, which was learnt later.

        A group in which somebody else has changed what was changed here stays as it was: that is a conflict, which the
        next push finds.
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
        """Takes over what the server says of one group; a group that only others have is none of ours."""
        index = self._index(news.group)
        if index is None or news.revision <= self._known[index].revision:
            return
        known, group = self._known[index], groups[index]
        before, now = _all(known), _all(news)
        for name, value in now.items():
            # A value that was changed here, and that the server has not heard of, stays.
            if _same(group, name, before[name]) and not _same(group, name, value):
                group[name] = self._shown(value)
        self._known[index] = news


def _all(options: GroupOptions) -> dict[str, OptionValue]:
    """The options of a group, with those that every group has and that are not told where they are at their default."""
    return {**GROUP_OPTIONS, **options.options}


def _is_unchanged(known: GroupOptions, group: Mapping[str, Any]) -> bool:
    """Whether a group has these very values; what is equal but not the same is left to a closer look."""
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
    """Whether a group has a value; of an option that every group has, the default where its dict does not have it."""
    if name not in group:
        return name in GROUP_OPTIONS and value == GROUP_OPTIONS[name]
    plain = plain_option(group[name])
    return bool(plain == value) and _precision(plain) == _precision(value)


def _precision(value: OptionValue) -> list[bool]:
    """Which of an option's numbers are computed with in float32: equal ones may differ in that."""
    return [isinstance(each, Single) for each in (value if isinstance(value, tuple) else (value,))]
