"""A session: pushes and pulls of one worker in one job, sent again until they are answered.

Everything that a session repeats is safe to repeat. Nothing else in the client retries.
"""

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import isfunction
from typing import Any, TypeVar

from optd.checkpoints.files import CheckpointInfo
from optd.checkpoints.place import place_of
from optd.checkpoints.transfer import SAVE_SECONDS, save
from optd.session.member_session import Settle
from optd.session.push_settings import PLAIN_PUSH, PushSettings
from optd.session.rejoining import RejoiningSession
from optd.transport.lane import Lane
from optd.transport.numbers import Sink, Source, StepSink
from optd.transport.requests import Known, Names, PullRequest, names_of
from optd_wire.errors import (
    Conflict,
    FutureVersion,
    InvalidArgument,
    NotFound,
    RolledBack,
    SequenceGap,
    Unauthenticated,
)
from optd_wire.values import (
    GroupOptions,
    GroupUpdate,
    JobVersion,
    PullResult,
    PushHeader,
    PushResult,
    WriteStateHeader,
)

T = TypeVar("T")
logger = logging.getLogger("optd")


class Session(RejoiningSession):
    """One worker's part in one job; opened by `connect`, and closed as a context manager or by `close`.

    May be used from several threads: its pushes follow one another. After a fork it belongs to the parent process; the
    child raises `ForkedSession`.
    """

    @property
    def next_push(self) -> tuple[int, int]:
        """The epoch and the sequence that the next push will have, unless the fate of the last one is unknown."""
        return self.epoch, self._sequence + 1

    @property
    def last_applied(self) -> tuple[int, int]:
        """The epoch and the sequence of the last push of this worker that counts, also before it joined anew."""
        membership = self._membership
        if membership is None or self._sequence:
            return self.epoch, self._sequence
        return membership.previous_epoch, membership.previous_sequence

    def push(
        self,
        gradients: Source,
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        settings: PushSettings = PLAIN_PUSH,
    ) -> PushResult:
        """Pushes gradients that were computed on `base`; blocks until they are part of a step.

        `settle` is told whether the push was applied: before this returns or raises, or, if the fate of the push is
        unknown, when the next push or `find_out` has learnt it.

        Raises `PushFoundApplied` if the answer is lost for good, and the push has been applied.
        """
        pushed = self._push(
            lambda lane, header, left: lane.push(header, gradients, left), updates, base, settle, settings
        )
        self._added_up = pushed.accumulated
        self._version = replace(self._version, durable_version=pushed.version.durable_version)
        return pushed

    def step(
        self,
        gradients: Source,
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        weights: StepSink,
        in_place: Sink | None,
        encoding: str,
        settings: PushSettings = PLAIN_PUSH,
    ) -> tuple[PushResult, PullResult]:
        """As `push`, and pulls in the same call.

        `in_place`, if given, takes weights that may stay where they are; `weights` takes all others. `encoding` is how
        messages carry weights, empty for unchanged.
        """
        with self._showing("first step", 0 if self._stepped else 2 * self._elements) as count:
            if not self._stepped and isfunction(gradients):  # sources of other types are told apart by their type
                gradients, weights = count.source(gradients), count.sink(weights)
            pushed, pulled = self._push(
                lambda lane, header, left: lane.step(
                    header, gradients, weights, left, in_place=in_place, encoding=encoding
                ),
                updates,
                base,
                settle,
                settings,
            )
        self._stepped = True
        self._version = pulled.version
        self._added_up = pushed.accumulated
        return pushed, pulled

    def _push(
        self,
        send: Callable[[Lane, PushHeader, float], T],
        updates: tuple[GroupUpdate, ...],
        base: JobVersion,
        settle: Settle,
        settings: PushSettings,
    ) -> T:
        """Sends one push under the next sequence number, and again under the same number if the answer is lost."""
        with self._lock:
            self._check_usable()
            epoch = self._resolved_epoch()
            attempts = 0

            def attempt(left: float) -> T:
                nonlocal attempts, epoch
                if epoch != self.epoch:  # it has joined again: no earlier attempt can count any more
                    epoch, attempts = self.epoch, 0
                attempts += 1
                header = PushHeader(
                    job=self.job,
                    worker=self.worker,
                    epoch=epoch,
                    sequence=self._sequence + 1,
                    base_version=base.version if settings.base_version is None else settings.base_version,
                    updates=updates,
                    known_revision=base.revision,
                    weight=settings.weight,
                    loss_scale=settings.loss_scale,
                    loss=settings.loss,
                    begins=settings.begins,
                    flush=settings.flush,
                    norms=settings.norms,
                    durable=self.durable,
                    fragment=settings.fragment,
                    speed=settings.speed,
                )
                return self._on_lane(lambda lane: send(lane, header, left))

            # The fate of the push is unknown until the answer arrives. A refusal of the first attempt means that it
            # was not applied. A refusal of a later one says nothing about the attempts before it.
            self._in_doubt = settle
            try:
                with self._round_watch.watching():
                    result = self._through_expiry(attempt, is_push=True)
            except (SequenceGap, FutureVersion) as error:
                # The server has not got what it had acknowledged: a power cut took the end of its log.
                why = f"the server no longer has what it had acknowledged ({error})"
                raise RolledBack(worker=self.worker, job=self.job, epoch=epoch, why=why) from None
            except (InvalidArgument, Unauthenticated, NotFound, Conflict):
                if attempts == 1:
                    self._in_doubt = None
                    settle(False, ())
                raise
            self._sequence += 1
            self._in_doubt = None
            self._note_found()
            self._acknowledged.note(epoch, self._sequence)
            settle(True, ())
            return result

    def wait_durable(self, version: int | None = None, timeout: float | None = None) -> int:
        """Blocks until a version of the job survives a power cut; returns the last one that does.

        Has the server write it to disk now. Default: the version that the job has when the call arrives, for up to the
        session's `timeout` seconds.

        Raises:
            NothingDurable: The server keeps nothing.
            InvalidRequest: The job has not come to this version.
            RolledBack: The server went back to an older version, so that steps of this worker are lost. The optimizer's
                next call goes on from there.
            DeadlineExceeded: It took too long.
        """

        def attempt(left: float) -> JobVersion:
            # A server that was restarted before or meanwhile would answer of steps that are not this worker's.
            self._check_part(left)
            now = self._transport.wait_durable(self.job, version, left)
            self._check_part(left)
            return now

        now = self._ask(attempt, timeout)
        self._version = replace(self._version, durable_version=now.durable_version)
        return now.durable_version

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        version: int | None = None,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> CheckpointInfo:
        """Writes a checkpoint of the job to a folder, or to a URL that fsspec knows, such as `s3://bucket/best`.

        The checkpoint has everything but the workers: weights, optimizer state, options, schedules, averages, history.
        It is at `path` whole when this returns, and not before. Steps of all workers go on meanwhile. `version` takes a
        snapshot on the server's disk instead of the job as it is now; `overwrite` replaces an older checkpoint;
        `storage_options` are those of the file system in fsspec. `optd.restore` brings it back.

        Raises `CheckpointExists`, `PlaceUnusable`, `VersionNotKept`, or `MemoryExceeded` if the server has no room for
        a copy of the job.
        """
        place = place_of(path, storage_options)
        return save(self._transport, self.job, place, SAVE_SECONDS, version=version, overwrite=overwrite)

    def pull_into(
        self,
        weights: Sink,
        known: Known | None,
        *,
        in_place: Sink | None = None,
        groups: Names = (),
        parameters: Names = (),
        weights_of: str = "",
        min_version: int = 0,
    ) -> PullResult:
        """Reads the current weights as this worker, unless they are `known`. `weights` and `in_place` are as in `step`.

        `weights_of` names an average to read instead. The job must have come to `min_version`: `wait` for it before.
        """
        encoding = self.wire.weights

        with self._lock, self._showing("pulling", self._elements) as count:

            def attempt(left: float) -> PullResult:
                count.passed = 0
                sink = count.sink(weights)
                request = PullRequest(
                    self.job,
                    self.worker if self.epoch else "",
                    self.epoch,
                    known,
                    groups=names_of(groups),
                    parameters=names_of(parameters),
                    weights=weights_of,
                    min_version=min_version,
                )
                return self._on_lane(lambda lane: lane.pull(request, sink, left, in_place=in_place, encoding=encoding))

            result = self._through_expiry(attempt)
            self._note_found()
        if not groups and not parameters and not weights_of:
            self._version = result.version
        return result

    def write_state(self, header: WriteStateHeader, numbers: Source) -> tuple[tuple[GroupOptions, ...], JobVersion]:
        """Replaces state, weights and options of the job, all or nothing; returns the options of all groups.

        A call whose answer is lost is repeated and counts once. Raises `OtherWorkers` or `WeightsMovedOn` if the header
        has `if_alone_at` and its condition does not hold.
        """
        write_id = secrets.token_hex(16)

        def attempt(left: float) -> tuple[tuple[GroupOptions, ...], JobVersion]:
            known = replace(header, epoch=self.epoch, write_id=write_id)
            return self._transport.write_state(known, numbers, left)

        with self._lock:
            self._check_usable()
            return self._through_expiry(attempt)
