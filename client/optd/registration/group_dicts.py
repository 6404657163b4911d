"""The option dicts of a registration's groups (`param_groups`), kept level with what the server holds."""

import logging
from collections.abc import MutableMapping, Sequence
from typing import Any

from optd.options.effective import Effective
from optd.options.mirror import OptionMirror, Shown
from optd.session.session import Session
from optd_wire.errors import OptdError
from optd_wire.values import EffectiveOptions, GroupInfo, GroupOptions, GroupUpdate, Options, PushResult

logger = logging.getLogger("optd")


class GroupDicts:
    """The dicts, the options that the server last told, and what its schedules make of them.

    `shown` turns an option's value into what the dicts have.
    """

    def __init__(self, session: Session, dicts: Sequence[MutableMapping[str, Any]], shown: Shown) -> None:
        self.dicts = list(dicts)
        self.effective = Effective()
        self._session = session
        self._mirror = OptionMirror(shown)

    def read(self, infos: Sequence[GroupInfo]) -> None:
        """Puts the options into the dicts as the server resolved them when the job was joined."""
        for info, group in zip(infos, self.dicts, strict=False):
            self._mirror.add(info.options, group)

    def append(self, options: GroupOptions, group: MutableMapping[str, Any]) -> None:
        """Adds the dict of a new group."""
        self.dicts.append(group)
        self._mirror.add(options, group)

    def changes(self) -> tuple[GroupUpdate, ...]:
        """What has been changed in the dicts since the server last told their options."""
        updates = self._mirror.changes(self.dicts)
        if updates:
            self.effective.check_changes(updates)
        return updates

    def everything(self) -> tuple[GroupUpdate, ...]:
        """All options of the dicts, to replace whatever is in force."""
        return self._mirror.everything(self.dicts)

    def absorb(self, options: Sequence[GroupOptions]) -> None:
        """Takes over the options of a reply; empty if none have changed."""
        self._mirror.absorb(options, self.dicts)

    def absorb_pushed(self, pushed: PushResult) -> None:
        """Takes over the options of a push's reply, and what schedules make of them."""
        self.absorb(pushed.options)
        if pushed.options:
            self.effective.read(self._mirror.known)
        if self.effective.any:
            self.effective.show(pushed.effective, self.dicts)

    def absorb_own(self, updates: tuple[GroupUpdate, ...], options: Sequence[GroupOptions]) -> None:
        """Takes over that a push with these updates was applied; see `OptionMirror.absorb_own`."""
        self._mirror.absorb_own(updates, options, self.dicts)
        if options:
            self.effective.read(self._mirror.known)

    def begin_again(self, options: Sequence[GroupOptions]) -> None:
        """Takes over the options of a job that went back to an older version; see `OptionMirror.begin_again`."""
        self._mirror.begin_again(options, self.dicts)
        self.effective.read(self._mirror.known)

    def all_options(self) -> list[Options]:
        """The options of each group as its dict has them, to create the group with."""
        return [update.options for update in self.everything()]

    def ask_effective(self) -> None:
        """Shows what schedules make of options, if there are schedules and the last reply did not tell.

        The call before it has succeeded, so a failure here is only logged; the next reply brings the values.
        """
        self.effective.read(self._mirror.known)
        if not self.effective.any:
            return
        try:
            told = [EffectiveOptions(each.options.group, each.effective) for each in self._session.groups()]
        except OptdError as error:
            logger.warning(
                "job %s: param_groups will show what schedules make of options after the next step, as the server does "
                "not tell now: %s",
                self._session.job,
                error,
            )
        else:
            self.effective.show(told, self.dicts)
