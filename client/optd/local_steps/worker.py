"""A worker that takes local steps: what it sends when, and what it does with the answers."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from optd.local_steps.courier import Courier
from optd.local_steps.fragments import partition
from optd.local_steps.outer import Answer, GlobalWeights, Parcel, Place
from optd.local_steps.schedule import Due, Schedule
from optd.local_steps.settings import Settings
from optd.local_steps.speeds import Stopwatch, first_steps, steps_for
from optd.params.flat_view import Array
from optd_wire.dtypes import computed_dtype
from optd_wire.errors import OptdError
from optd_wire.values import PushResult, Sync

logger = logging.getLogger("optd")


class LocalWeights(Protocol):
    """The weights that a worker's own steps change."""

    def read(self, place: Place) -> Array:
        """The weights of a parameter: a view, or a copy."""

    def write(self, place: Place, array: Array) -> None:
        """Replaces the weights of a parameter."""


@dataclass(slots=True)
class Fragment:
    """A part of the model, and where its exchange with the job stands."""

    index: int
    """-1: the whole model."""
    places: list[Place]
    version: int
    """The version of its global weights."""
    steps: int = 0
    """Local steps since it was last sent."""
    counted: list[Array] | None = None
    """Differences to its global weights that the job has, although the weights that came of them are not here yet."""
    parcel: Parcel | None = None
    """The last one, until its answer is applied, or its fate known."""
    answer: Future[Answer] | None = None
    """The answer to it, while that is awaited."""
    sent_steps: int = field(default=0)
    """Local steps in that parcel."""

    @property
    def unsent(self) -> int:
        """Local steps that are not sent, are under way, or whose sync has failed and is not known to count."""
        failed = self.parcel is not None and self.answer is None and not self.parcel.applied
        return self.steps + (self.sent_steps if failed or self.answer is not None else 0)


class Worker:
    """Follows a schedule: `after_step` is called after each local step, by one thread.

    `clock` tells seconds.
    """

    def __init__(
        self,
        outer: GlobalWeights,
        local: LocalWeights,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outer = outer
        self.last: PushResult | None = None
        """The result of the last push that was answered; if that was refused, its `dropped` says why."""
        self.weight = settings.weight
        self._local = local
        self._settings = settings
        most, self._follows_speeds = settings.every, settings.follows_speeds
        self.schedule = Schedule(most, settings.fragments, settings.delay)
        if self._follows_speeds:
            self.schedule.resize(first_steps(most))
        self._watch = Stopwatch(clock)
        self._courier = Courier(background=settings.delay > 0)
        self._has_begun = False
        self._has_failed = False
        """Whether an exchange has failed since the last one that is known to be in order."""
        self._is_behind = False
        """Whether the base is that of weights that no longer exist, or a mixture."""
        self.is_saved = False
        """Whether its state was taken since the last local step."""
        self.fragments = self._divide()
        self._align()
        if outer.attached:
            for fragment in self.fragments:
                self._reset(fragment)

    def _divide(self) -> list[Fragment]:
        groups, count = self.outer.groups, self._settings.fragments
        places = [(number, place) for number, group in enumerate(groups) for place in range(len(group.arrays))]
        sizes = [self.outer.array(place).nbytes for place in places]
        parts = partition(sizes, count)
        version = self.outer.base.version
        return [
            Fragment(-1 if count == 1 else index, [places[number] for number in part], version)
            for index, part in enumerate(parts)
        ]

    def _align(self) -> None:
        """Finds out which fragment the others send next: in a sync job each round is one version.

        Fragments of rounds that this worker has sent already are left out.
        """
        count = self.schedule.fragments
        if count == 1:
            return
        job = self.outer.session.info()
        if isinstance(job.policy, Sync):
            rounds = [(job.version.version + number) % count for number in range(count)]
            self.schedule.align(next((each for each in rounds if each not in self.schedule.under_way), rounds[0]))

    @property
    def version(self) -> int:
        """The newest version of global weights that any fragment has."""
        return max(fragment.version for fragment in self.fragments)

    @property
    def unsent(self) -> int:
        """The local steps of which not all fragments are known to count."""
        return max(fragment.unsent for fragment in self.fragments)

    # Syncs

    def after_step(self) -> None:
        """Counts a local step; applies answers and sends a fragment, if they are due.

        Blocks until the answer is there if it is due. Raises what kept it from coming; the fragment's difference then
        stays one to its old global weights, and is sent with its next sync, as far as it does not count already.
        """
        self._watch.stop()
        self.is_saved = False
        if not self._has_begun:
            self.outer.use()
            self._has_begun = True
        for fragment in self.fragments:
            fragment.steps += 1
        try:
            self._follow(self._due())
        finally:
            self._watch.start()

    def _due(self) -> Due:
        if self._has_failed and self.schedule.sends_next:
            try:
                self._find_place()
            except OptdError:
                self.schedule.after_step()  # that sync fails as well
                raise
        return self.schedule.after_step()

    def _follow(self, due: Due) -> None:
        problem: OptdError | None = None
        asks_speeds = self._follows_speeds and self.schedule.begins
        for number in due.lands:
            try:
                self._land(self.fragments[number])
            except OptdError as error:
                problem = problem or error  # what is sent now is sent nevertheless: others may wait for it
            finally:
                if self.fragments[number].answer is not None:  # an interrupt ended the wait for it
                    self.schedule.postpone(number)
        if due.send is not None:
            self._send(self.fragments[due.send], asks_speeds=asks_speeds)
            if not self.schedule.delay:
                self._land(self.fragments[due.send])
        if problem is not None:
            raise problem

    def _find_place(self) -> None:
        """After syncs that failed: learns what counts, and which fragment comes next."""
        for fragment in self.fragments:
            if fragment.answer is None:
                self._settle(fragment)
        self._align()
        self._has_failed = False

    def sync(self) -> None:
        """Sends everything that is unsent, one fragment after the other, and takes the global weights."""
        self._land_all()
        for _ in range(self.schedule.fragments):
            number = self.schedule.next_fragment
            self._send(self.fragments[number])
            self._land(self.fragments[number], mixes=False)
            self.schedule.align((number + 1) % self.schedule.fragments)
        self.schedule.restart()

    def _land_all(self) -> None:
        """Applies all answers to what is under way, in the order in which it was sent."""
        for number in self.schedule.under_way:
            self._land(self.fragments[number])
        self.schedule.landed()

    def close(self) -> None:
        """Applies the answers to what is under way, and says what stays unsent."""
        try:
            self._land_all()
        finally:
            self._tell_unsent()

    def _send(self, fragment: Fragment, *, asks_speeds: bool = False) -> None:
        self._land(fragment)
        if self._is_behind:
            self._begin_again()
        self._settle(fragment)
        weight = self.weight
        if weight is None and self._follows_speeds:
            weight = float(max(1, fragment.steps))  # workers have taken different numbers of steps
        parcel = Parcel(
            fragment.index,
            fragment.places,
            self._differences(fragment),
            fragment.version,
            weight,
            self._watch.measure(),
            self._settings.encoding,
            asks_speeds,
        )
        fragment.parcel, fragment.sent_steps, fragment.steps = parcel, fragment.steps, 0
        fragment.answer = self._courier.send(lambda: self.outer.exchange(parcel))

    def settle(self) -> None:
        """Waits for everything that is under way, and learns the fate of what was not answered. Applies nothing."""
        waiting = [fragment for fragment in self.fragments if fragment.answer is not None]
        wait([fragment.answer for fragment in waiting if fragment.answer is not None])
        for fragment in waiting:
            if fragment.answer is not None and fragment.answer.exception() is not None:
                fragment.answer = None
        for fragment in self.fragments:
            if fragment.answer is None:
                self._settle(fragment)

    def begin(self) -> None:
        """Begins anew from the job's weights; what was computed and not sent is dropped."""
        self.settle()
        self.outer.pull()
        for fragment in self.fragments:
            fragment.counted = fragment.parcel = fragment.answer = None
            fragment.steps, fragment.version = 0, self.outer.base.version
            self._reset(fragment)
        self.schedule.restart()
        self._align()

    def _settle(self, fragment: Fragment) -> None:
        """Learns the fate of a parcel that was not answered; if it counts, it must not be sent again."""
        parcel = fragment.parcel
        if parcel is None:
            return
        if self.outer.counts(parcel):
            before = fragment.counted
            fragment.counted = (
                [*parcel.differences] if before is None else list(map(np.add, before, parcel.differences))
            )
        else:
            fragment.steps += fragment.sent_steps
        fragment.parcel = None

    def _differences(self, fragment: Fragment) -> list[Array]:
        found = []
        for number, place in enumerate(fragment.places):
            base = self.outer.array(place)
            exact = computed_dtype(base.dtype)
            difference = np.subtract(base, self._local.read(place), dtype=exact)
            if fragment.counted is not None:
                difference -= fragment.counted[number]
            found.append(difference)
        return found

    def _land(self, fragment: Fragment, *, mixes: bool = True) -> None:
        """Applies the answer to a fragment that is under way; waits for it. Does nothing if none is.

        Unless it `mixes`, the global weights replace the local ones, as no step was taken since the fragment was sent.
        """
        if fragment.answer is None:
            return
        try:
            answer = fragment.answer.result()
        except BaseException:
            # An interrupt may have come just when the answer had arrived: then it is there for the next sync.
            if fragment.answer.done() and fragment.answer.exception() is not None:
                fragment.answer, self._has_failed = None, True  # `_settle` finds out what came of it
            raise
        fragment.answer = fragment.parcel = fragment.counted = None
        fragment.version = answer.version
        if answer.result is not None:
            self.last = answer.result
        if answer.undone:
            self._tell_lost(max(each.sent_steps + each.steps for each in self.fragments), answer)
            self._begin_again()
        elif answer.lost:
            self._give_up(fragment, answer)
        else:
            self._mix(fragment, self._settings.alpha if mixes else 0.0)
        if answer.speeds:
            self.schedule.resize(steps_for(self._watch.speed, answer.speeds, self._settings.every))

    def _mix(self, fragment: Fragment, alpha: float) -> None:
        """Streaming DiLoCo, algorithm 2: alpha * local + (1 - alpha) * global."""
        if not alpha:
            self._reset(fragment)
            return
        for place in fragment.places:
            base = self.outer.array(place)
            exact = computed_dtype(base.dtype)
            mixed = np.multiply(self._local.read(place), alpha, dtype=exact)
            mixed += np.multiply(base, 1 - alpha, dtype=exact)
            self._local.write(place, mixed.astype(base.dtype, copy=False))

    def _reset(self, fragment: Fragment) -> None:
        """Makes the local weights of a fragment the global ones."""
        for place in fragment.places:
            self._local.write(place, self.outer.array(place))

    def _give_up(self, fragment: Fragment, answer: Answer) -> None:
        """Goes on from the global weights after a difference came too late, as torchft does after a failed sync."""
        self._tell_lost(fragment.sent_steps + fragment.steps, answer)
        fragment.steps = 0
        self._reset(fragment)
        self._align()
        if answer.missed and self.schedule.delay:
            self.schedule.hasten()

    def _begin_again(self) -> None:
        """Goes on from the weights of a server that went back: the differences to later ones mean nothing to it."""
        self._is_behind = True
        self.outer.begin_again(fragment.parcel for fragment in self.fragments if fragment.parcel is not None)
        self._is_behind = False
        for fragment in self.fragments:
            fragment.counted = fragment.parcel = fragment.answer = None
            fragment.steps = 0
            fragment.version = self.outer.base.version
            self._reset(fragment)
        self._align()

    def _tell_unsent(self) -> None:
        if self.unsent and not self.is_saved:
            logger.warning(
                "job %s: worker %s ends with %d local steps that are not sent, not whole, or not known to count; call "
                "sync() or state_dict() before you close",
                self.outer.session.job,
                self.outer.session.worker,
                self.unsent,
            )

    def _tell_lost(self, steps: int, answer: Answer) -> None:
        logger.warning(
            "job %s: what worker %s has computed in %d local steps is lost (%s); it goes on from version %d",
            self.outer.session.job,
            self.outer.session.worker,
            steps,
            answer.lost,
            answer.version,
        )
