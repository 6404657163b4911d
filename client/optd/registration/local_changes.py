"""Changes that a script makes to its weights between two steps: sent before the next step, warned of, or ignored.

`contents` finds them; how arrays or tensors are read is up to each optimizer face.
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
    """Returns the option `local_changes`; raises `InvalidRequest` for any other value."""
    if given not in LOCAL_CHANGES:
        raise InvalidRequest(problem=f"local_changes must be 'send', 'warn' or 'ignore', got {given!r}")
    return str(given)


class Watched(Protocol):
    """The weights that a script can write to, numbered through all groups, compared with what the job has."""

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Notes that the job has what they hold now; for those in `but` the earlier note stays."""

    def differences(self) -> Differences:
        """Those that hold something else now."""

    def read(self, numbers: Collection[int]) -> None:
        """Copies them into the registration's arrays."""


class WatchedArrays:
    """Numpy arrays. Writes to them are not counted, so for large ones a sample decides."""

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
        """Does nothing: they are the registration's arrays."""


class Unwatched:
    """Weights that are not compared."""

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Does nothing."""

    def differences(self) -> Differences:
        """No differences."""
        return Differences([], [])

    def read(self, numbers: Collection[int]) -> None:
        """Does nothing."""


class LocalChanges:
    """Finds the changes of one optimizer's weights and sends them or warns. The caller holds the registration's lock.

    `hold_weights` tells whether the watched arrays hold the weights, which with `zero_copy` may lie elsewhere.
    """

    def __init__(
        self,
        mode: str,
        registration: Registration,
        watched: Watched,
        hold_weights: Callable[[], bool] = lambda: True,
    ) -> None:
        self.watched = watched
        """The watched weights. The owner replaces them when a group is added, and calls `note`."""
        self.mode = mode
        """The option `local_changes`."""
        self._registration = registration
        self._hold_weights = hold_weights
        self._warned: set[str] = set()
        self._others = False
        """Whether the last change was refused because of other workers."""
        self._is_open = False
        """Whether a call is writing weights, or was interrupted while it did."""
        self.unsent: list[int] = []
        """The numbers of the changed weights that the job did not get."""

    def expect(self) -> None:
        """Says that the job's weights are about to be written here: until `note`, differences are no changes."""
        self._is_open = True

    def note(self, but: Collection[int] = frozenset()) -> None:
        """Notes that the job has what the watched weights hold; for those in `but` the earlier note stays."""
        self.watched.note(but)
        self._is_open = False

    def settle(self) -> bool:
        """Sends what a script has changed, before gradients are sent, or warns that it cannot.

        Returns whether the job now has what the arrays hold. Warns once for each reason; with "warn", for each change.
        Raises what prevents the write.
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
        """Sends changes; returns why the job does not get them, with values for the warning; "" if it gets them."""
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
        """Why the changes cannot be sent, as far as that is known before anything is sent."""
        if not self._hold_weights():
            return "zero_copy", {}
        if self.mode != SEND:
            return WARN, {}
        if self._registration.has_average:
            return "average", {}
        wire = self._registration.session.wire
        if wire.weights:
            return "encoding", {"encoding": wire.weights}
        # The server records each refusal, and numbers may travel in vain: after the first one, ask before sending.
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

    def not_pulled(self, numbers: Collection[int], groups: Names, parameters: Names) -> list[int]:
        """Those parameters of `numbers` that a pull of some groups and parameters does not write."""
        wanted = {*names_of(groups)}, {*names_of(parameters)}
        if not any(wanted):
            return []
        pulled = [
            group.name in wanted[0] or name in wanted[1] for group in self._registration.groups for name in group.names
        ]
        return [number for number in numbers if not pulled[number]]
