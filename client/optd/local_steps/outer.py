"""The job of local steps: it holds the global weights, and its algorithm is the outer optimizer."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optd.params.flat_view import Array
from optd.params.groups import plain_option
from optd.registration.recovery import LatePush, UndonePush, recovers
from optd.registration.registration import Registration
from optd.session.member_session import Settle
from optd.session.push_settings import PushSettings
from optd_wire.errors import InvalidRequest, OptdError, RoundClosed, StaleGradient
from optd_wire.values import GroupUpdate, JobVersion, Options, PushResult

logger = logging.getLogger("optd")

DILOCO: Mapping[str, Any] = {"algorithm": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True}
"""The outer optimizer of DiLoCo: https://arxiv.org/abs/2311.08105, section 3."""
_ALGORITHM = "algorithm"
_WENT_BACK = "the server went back to an older version"

Place = tuple[int, int]
"""A parameter by its group and its place in the group."""


def read_outer(outer: Mapping[str, Any]) -> tuple[str, Options]:
    """The algorithm and the options that an outer optimizer is given by; raises `InvalidRequest`."""
    if not isinstance(outer, Mapping) or not isinstance(outer.get(_ALGORITHM), str):
        problem = f"outer must be a dict with the entry 'algorithm' and options, as {dict(DILOCO)}; got {outer!r}"
        raise InvalidRequest(problem=problem)
    return outer[_ALGORITHM], {name: plain_option(value) for name, value in outer.items() if name != _ALGORITHM}


@dataclass(slots=True)
class Parcel:
    """The difference of one fragment on its way to the job."""

    fragment: int
    """Its index; -1: the whole model."""
    places: Sequence[Place]
    differences: Sequence[Array]
    """The global weights minus the local ones, in the order of `places`; not changed while the parcel is on its way."""
    base_version: int
    """The version of these global weights."""
    weight: float | None = None
    speed: float = 0.0
    encoding: str | None = None
    asks_speeds: bool = False
    """Whether the speeds of all workers are wanted."""
    applied: bool | None = None
    """Whether it counts in the job; None: nobody knows yet."""
    is_void: bool = False
    """Whether it must not be sent any more. Read and written while the lock of the global weights is held."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a parcel. The arrays of its places then hold the new global weights, unless it was `undone`."""

    result: PushResult | None
    """If it does not count, the result's `dropped` says why. None if it is known from a saved state only."""
    version: int
    """The version of the new global weights."""
    lost: str = ""
    """Why it does not count, if it does not."""
    missed: bool = False
    """Whether its round has closed without it: the others sent theirs earlier."""
    undone: bool = False
    """Whether the server went back to an older version, so that no weights of before exist: pull all of them."""
    speeds: tuple[float, ...] = ()


class GlobalWeights(Registration):
    """Groups of arrays that hold the last global weights that this worker has seen: the base of its differences."""

    _parcel: Parcel | None = None

    def use(self, *, told: bool = False) -> None:
        """Goes on with the weights of a job that existed before; warns of that, unless the caller has `told` it."""
        with self.lock:
            if told:
                self._existing = None
            self._use()

    def rebase(self, version: int) -> None:
        """Notes that the arrays hold the weights of a version that was not pulled here."""
        with self.lock:
            self._base = replace(self._base, version=version)

    def names(self, places: Sequence[Place]) -> tuple[str, ...]:
        """The names of parameters."""
        groups = self.groups
        return tuple(groups[group].names[place] for group, place in places)

    def array(self, place: Place) -> Array:
        """The global weights of a parameter."""
        return self.groups[place[0]].arrays[place[1]]

    def exchange(self, parcel: Parcel) -> Answer:
        """Pushes a difference and pulls the new global weights of its places; does neither for a void parcel.

        A difference that comes too late is lost; the new weights are pulled all the same. Raises what a push or a pull
        raises; `parcel.applied` then says whether the push counts, or that nobody knows.
        """
        with self.lock:  # held until the pull has ended: no other weights may come in between
            if parcel.is_void:
                return self._undone(UndonePush(self.base, 0, 0, False))
            return self._exchange(parcel)

    def begin_again(self, parcels: Iterable[Parcel]) -> None:
        """Pulls everything from a server that went back; differences to weights of before that are not sent are void.

        Raises what a pull raises; they are void nevertheless.
        """
        with self.lock:
            for parcel in parcels:
                parcel.is_void = True
            self.pull()

    def _exchange(self, parcel: Parcel) -> Answer:
        rows: list[list[Array | None]] = [[None] * len(group.arrays) for group in self.groups]
        for (group, place), difference in zip(parcel.places, parcel.differences, strict=True):
            rows[group][place] = difference
        settings = PushSettings(
            weight=parcel.weight,
            fragment=parcel.fragment + 1,
            # That of the whole model is the registration's own, also in a job that is created anew.
            base_version=None if parcel.fragment < 0 else parcel.base_version,
            speed=parcel.speed,
        )
        self._parcel = parcel
        try:
            pushed = self.push(rows, parcel.encoding, settings)
        except RoundClosed as error:
            return replace(self._refused(parcel, error.values["how"]), missed=True)
        except StaleGradient as error:
            why = f"its staleness is {error.values['staleness']}, and the policy allows {error.values['most']}"
            return self._refused(parcel, why)
        if isinstance(pushed, UndonePush):
            return self._undone(pushed)
        # Before the pull: once the arrays hold new weights, nothing may keep the answer from the worker.
        speeds = self._speeds() if parcel.asks_speeds else ()
        return Answer(pushed, self.pull_places(parcel).version, speeds=speeds)

    def _undone(self, pushed: UndonePush) -> Answer:
        return Answer(pushed, pushed.version.version, _WENT_BACK, undone=True)

    def _refused(self, parcel: Parcel, why: str) -> Answer:
        waiting = self._added_up()  # before the pull, as above
        version = self.pull_places(parcel)
        return Answer(LatePush(version, 0, 0, False, accumulated=waiting, why=why), version.version, why)

    def _settling(self, settle: Callable[[bool], None], updates: tuple[GroupUpdate, ...]) -> Settle:
        inner, parcel = Registration._settling(self, settle, updates), self._parcel

        def settled(applied: bool, options: Any) -> None:
            if parcel is not None:
                parcel.applied = applied
            inner(applied, options)

        return settled

    @recovers
    def counts(self, parcel: Parcel) -> bool:
        """Whether a parcel whose exchange failed counts in the job; asks the server if nobody knows.

        Raises what prevents that.
        """
        if parcel.applied is None and self.session.in_doubt:
            self.session.find_out()
        return bool(parcel.applied)

    def pull_places(self, parcel: Parcel) -> JobVersion:
        """Puts the current weights of a parcel's places into their arrays; returns their version.

        If that fails, the arrays are as they were: the base of a difference is of one version.
        """
        before = [self.array(place).copy() for place in parcel.places]
        try:
            return self._pull_places(parcel)
        except BaseException:
            for place, array in zip(parcel.places, before, strict=True):
                self.array(place)[...] = array
            raise

    @recovers
    def _pull_places(self, parcel: Parcel) -> JobVersion:
        with self.lock:
            if parcel.fragment < 0:
                self.pull()
                return self.base
            names = self.names(parcel.places)
            pulled = self.session.pull_into(self._incoming.write, None, parameters=names)
            self._groups.absorb(pulled.options)
            return pulled.version

    def _speeds(self) -> tuple[float, ...]:
        try:
            return tuple(worker.speed for worker in self.session.workers() if worker.active)
        except OptdError as error:
            logger.warning(
                "job %s: worker %s keeps its number of local steps, as the server does not tell the speeds of the "
                "others: %s",
                self.session.job,
                self.session.worker,
                error,
            )
            return ()
