"""`param_groups`: the options as the worker sees and changes them, kept level with those that the server holds."""

from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

from optd.params import plain_option
from optd_wire.values import GroupOptions, GroupUpdate

ParamGroups = Sequence[MutableMapping[str, Any]]


class OptionMirror:
    """What the server's options were when this worker last heard of them.

    A group's dict that differs from it has been changed here, by hand or by a scheduler: the change travels with the
    next push, made on the revision that was seen. What others have changed comes back with the reply, and is put into
    the dicts wherever they have not been changed here.
    """

    def __init__(self) -> None:
        self._known: list[GroupOptions] = []

    def __len__(self) -> int:
        return len(self._known)

    def add(self, options: GroupOptions, group: MutableMapping[str, Any]) -> None:
        """Takes a group over as the server resolved it."""
        self._known.append(options)
        group.update({name: value for name, value in options.options.items() if not _same(group, name, value)})

    def changes(self, groups: ParamGroups) -> tuple[GroupUpdate, ...]:
        """What has been changed here since."""
        return tuple(
            GroupUpdate(known.group, changed, known.revision)
            for known, group in zip(self._known, groups, strict=False)
            if not _is_unchanged(known, group) and (changed := _changed(known, group))
        )

    def absorb(self, options: Sequence[GroupOptions], groups: ParamGroups) -> None:
        """Takes over what a reply told; empty where nothing has changed."""
        for news in options:
            self.absorb_one(news, groups)

    def absorb_one(self, news: GroupOptions, groups: ParamGroups) -> None:
        """Takes over what the server says of one group; a group that only others have is none of ours."""
        index = next((i for i, known in enumerate(self._known) if known.group == news.group), None)
        if index is None or news.revision <= self._known[index].revision:
            return
        known, group = self._known[index], groups[index]
        for name, value in news.options.items():
            # A value that was changed here, and that the server has not heard of, stays.
            if _same(group, name, known.options[name]) and not _same(group, name, value):
                group[name] = value
        self._known[index] = news


def _is_unchanged(known: GroupOptions, group: Mapping[str, Any]) -> bool:
    """Whether a group has these very values; what is equal but not the same is left to a closer look."""
    return all(map(is_, known.options.values(), map(group.get, known.options)))


def _changed(known: GroupOptions, group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: plain_option(group[name])
        for name, value in known.options.items()
        if name in group and not _same(group, name, value)
    }


def _same(group: Mapping[str, Any], name: str, value: Any) -> bool:
    return name in group and plain_option(group[name]) == value
