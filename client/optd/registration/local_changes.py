"""What a script changes in its weights between two steps: sent to the job before the next one, warned of, or ignored.

What has changed is found in the content of the arrays (`contents`); how they are read is each face's own.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from optd.caller_warnings import warn_caller
from optd.params.groups import ParamGroup
from optd.registration.contents import Contents, Differences, Look
from optd.registration.registration import Registration
from optd.transport.requests import Names, names_of
from optd_wire.errors import InvalidRequest, OtherWorkers, WeightsMovedOn

SEND, WARN, IGNORE = LOCAL_CHANGES = ("send", "warn", "ignore")

_CALL = "Call push_weights() to send it, or set local_changes='ignore' to drop such changes silently"
_WHY = {
    WARN: "the weights of job {job} replace the change. Call push_weights() to send it, or pull() to drop it; with "
    "local_changes='send' the optimizer sends such changes by itself",
    "others": "sending the change would undo the steps of workers {others}, which take part in job {job}, so the job's "
    "weights replace it. " + _CALL,
    "moved": "the weights of job {job} have moved on from version {base}, which this worker holds. Sending the change "
    "would undo steps, so the job's weights replace it. Call pull() before you change weights. " + _CALL,
    "encoding": "messages carry the weights of job {job} in {encoding}, so those here are rounded: sending the change "
    "would round the whole parameter on the server, so the change is not sent, and the job's weights replace it. "
    + _CALL,
    "average": "the arrays hold an average of the weights of job {job}, so the change is not sent, and the job's "
    "weights replace it. " + _CALL,
    "zero_copy": "with zero_copy the arrays of params do not hold the weights of job {job}, so the change is not sent. "
    "Pass the weights that are to count to push_weights(), or set local_changes='ignore'",
}


def check_local_changes(given: Any) -> str:
    """Return the option `local_changes`; raises `InvalidRequest` where it is none."""
    if given not in LOCAL_CHANGES:
        raise InvalidRequest(problem=f"local_changes must be 'send', 'warn' or 'ignore', got {given!r}")
    return str(given)


class Watched(Protocol):
    """The weights that a script can write to, numbered through all groups, and what the job has of them."""

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Remember that the job has what they hold now; of those in `but`, what was remembered stays."""

    def differences(self) -> Differences:
        """Those that hold something else now."""

    def read(self, numbers: Collection[int]) -> None:
        """Make the registration's arrays hold them."""


class WatchedArrays:
    """Arrays of numpy. Nobody knows of writes to them, so that of large ones the sample alone tells."""

    def __init__(self, groups: Sequence[ParamGroup]) -> None:
        self._arrays = [array for group in groups for array in group.arrays]
        self._contents = Contents([(array.size, array.dtype) for array in self._arrays])
        self._look = Look.at(self._arrays)

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Remember that the job has what they hold now."""
        self._contents.note(self._look, self._arrays.__getitem__, but=but)

    def differences(self) -> Differences:
        """Those that hold something else now."""
        return self._contents.differences(self._look, self._arrays.__getitem__)

    def read(self, numbers: Collection[int]) -> None:
        """They are the registration's."""


class Unwatched:
    """Weights that nobody looks at."""

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Remember nothing."""

    def differences(self) -> Differences:
        """None that anybody knows of."""
        return Differences([], [])

    def read(self, numbers: Collection[int]) -> None:
        """There is none to read."""


class LocalChanges:
    """What is done about changes, for one optimizer. Whoever calls it lets nobody else write to the weights meanwhile.

    `hold_weights` says whether the watched arrays are where the weights lie.
    """

    def __init__(
        self,
        mode: str,
        registration: Registration,
        watched: Watched,
        hold_weights: Callable[[], bool] = lambda: True,
    ) -> None:
        self.watched = watched
        """To be replaced by others, and noted, where a group is added."""
        self.mode = mode
        """The option `local_changes`."""
        self._registration = registration
        self._hold_weights = hold_weights
        self._warned: set[str] = set()
        self._others = False
        """Whether other workers have been met."""
        self._is_open = False
        """Whether weights are being written here, or were when a call was broken off."""
        self.unsent: list[int] = []
        """The changes that the job did not get when they were last looked for."""

    def expect(self) -> None:
        """Takes note that weights of the job are about to be written: until `note`, what is there is no change."""
        self._is_open = True

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Takes note that the job has what the watched weights hold; of those in `but`, what was noted stays."""
        self.watched.note(but)
        self._is_open = False

    def settle(self) -> bool:
        """See to it that the job has what a script has changed, before gradients are sent, or warn that it has not.

        Returns whether the job has what the arrays hold, if they hold the weights. A warning comes once for each
        reason, but with "warn", where each change has one. Raises what keeps weights from being written.
        """
        if self._is_open:
            return False  # an interrupt has left weights half written; the next step brings them all
        found = self.watched.differences()
        self.unsent = found.all
        if not found:
            return True
        why, values = self._send(found.all)
        if not why:
            self.unsent = []
        if why and self.mode != IGNORE and (why == WARN or why not in self._warned):
            self._warned.add(why)
            warn_caller(self._warning(found, why, values))
        return not why

    def _send(self, numbers: list[int]) -> tuple[str, dict[str, Any]]:
        """Why the job does not get the changes, with what there is to say of it; an empty text where it does."""
        why, values = self._obstacle()
        if why:
            return why, values
        places = [place for place, _ in self._all()]
        self.watched.read(numbers)
        try:
            self._registration.write_changes({places[number] for number in numbers})
        except OtherWorkers as refusal:
            self._others = True
            return "others", dict(refusal.values)
        except WeightsMovedOn as refusal:
            return "moved", dict(refusal.values)
        self._others = False
        self.note()
        return "", {}

    def _obstacle(self) -> tuple[str, dict[str, Any]]:
        """The same, of what is known before anything is sent."""
        if not self._hold_weights():
            return "zero_copy", {}
        if self.mode != SEND:
            return WARN, {}
        if self._registration.has_average:
            return "average", {}
        wire = self._registration.session.wire
        if wire.weights:
            return "encoding", {"encoding": wire.weights}
        # A refusal is found in the job's rejections, and numbers may have been on their way: it is asked for once.
        others = self._registration.session.other_workers() if self._others else ()
        return ("others", {"others": ", ".join(map(repr, others))}) if others else ("", {})

    def _all(self) -> list[tuple[tuple[int, int], str]]:
        """The place of each parameter, and its name."""
        groups = self._registration.groups
        return [((i, place), name) for i, group in enumerate(groups) for place, name in enumerate(group.names)]

    def _warning(self, found: Differences, why: str, values: dict[str, Any]) -> str:
        numbers = found.certain or found.unknown
        name = self._all()[numbers[0]][1]
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        what = "has been changed here" if found.certain else "has been written to here, and may hold something else now"
        job = repr(self._registration.session.job)
        return f"parameter {name!r}{others} {what}; " + _WHY[why].format(**{**values, "job": job})

    def beside(self, numbers: Collection[int], groups: Names, parameters: Names) -> list[int]:
        """Those of some parameters that a pull of some groups and parameters leaves alone."""
        wanted = {*names_of(groups)}, {*names_of(parameters)}
        if not any(wanted):
            return []
        pulled = [
            group.name in wanted[0] or name in wanted[1] for group in self._registration.groups for name in group.names
        ]
        return [number for number in numbers if not pulled[number]]
