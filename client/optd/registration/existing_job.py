"""A job that existed before its worker: how its weights and options differ from the worker's.

The job's weights replace the worker's. But a script that loads a checkpoint next relies on its own weights, so those
are kept until its first step, push or pull, which also logs the differences.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from optd.caller_warnings import warn_caller
from optd.options.group_options import GROUP_OPTIONS
from optd.params.flat_view import Array, ArraysByGroup, same_bits
from optd.params.groups import ParamGroup
from optd.registration.group_algorithms import reaching
from optd.session import environment
from optd.session.departure import open_sessions
from optd.session.session import Session
from optd.state.all_parameters import STEP, ParameterState
from optd_wire.errors import WorkerInUse
from optd_wire.values import GroupInfo, Membership, Options

logger = logging.getLogger("optd")


@dataclass(slots=True)
class ExistingJob:
    """A job that was there before its worker, until the worker uses it."""

    own: list[list[Array]] | None = None
    """Copies of the weights that the worker had; None if the job has the same."""
    is_confirmed: bool = False
    """Whether the state that was loaded last is the job's own."""
    warning: str = ""
    """The warning that these were replaced; empty if none is due."""
    differing: list[str] = field(default_factory=list)
    """A text for each option that differs from what the worker asked for."""

    @classmethod
    def found(
        cls,
        session: Session,
        membership: Membership,
        algorithm: str,
        defaults: Options,
        groups: Sequence[ParamGroup],
        own: list[list[Array]],
        weights: ArraysByGroup,
    ) -> "ExistingJob":
        """Compares a job that was joined with what its worker asked for, and its `weights` with the worker's `own`."""
        differing = [
            *differing_options(session, algorithm, defaults, groups, membership.job.groups),
            *differing_job_options(session, membership.job.options.options),
        ]
        if same_weights(own, weights):
            return cls(differing=differing)
        return cls(own, warning=replaced(session, membership), differing=differing)

    def tell(self) -> None:
        """Logs the differences, and warns."""
        for notice in self.differing:
            logger.warning("%s", notice)
        if self.warning:
            warn_caller(self.warning)


def replaced(session: Session, membership: Membership) -> str:
    """The warning that a job's weights have replaced the worker's; empty if that is no surprise.

    It is no surprise in a job without a step, and in one that other workers train. A worker does not count if its name
    says that it ran on this host and its process has ended: its lease has just not run out yet.
    """
    job = membership.job
    if not job.version.version:
        return ""
    if membership.other_workers and not all(map(environment.has_ended, session.other_workers())):
        return ""
    stepped = datetime.fromtimestamp(job.stepped_unix_ms / 1000, UTC).astimezone()
    return (
        f"job {job.name!r} at {session.address} exists, and this optimizer goes on with it: its weights of version "
        f"{job.version.version}, last stepped at {stepped:%Y-%m-%d %H:%M:%S}, have replaced those that were here when "
        "the optimizer was made, and its state and options count. To start afresh, pass if_exists='replace' or another "
        "job=; to go on from a checkpoint, call load_state_dict() before the first step; if_exists='fail' raises"
    )


def differing_options(
    session: Session, algorithm: str, defaults: Options, groups: Sequence[ParamGroup], infos: Sequence[GroupInfo]
) -> list[str]:
    """A text for each group option that differs from what was asked for; `defaults` are those of `algorithm`."""
    advice = "change it in param_groups"
    return [
        f"job {session.job} exists already: group {group.name} goes on with {name}={value}, not {asked[name]}; {advice}"
        for info, group in zip(infos, groups, strict=False)
        for asked in [{**reaching(defaults, algorithm, group.algorithm), **group.options}]
        for name, value in {**GROUP_OPTIONS, **info.options.options}.items()
        if name in asked and asked[name] != value
    ]


def differing_job_options(session: Session, found: Options) -> list[str]:
    """A text for each option of the job as a whole that differs from what was asked for."""
    return [
        f"job {session.job} exists already: it goes on with {name}={found.get(name)}, not {asked}; change it with "
        "session.set_options()"
        for name, asked in session.options.items()
        if found.get(name) != asked
    ]


def same_weights(one: ArraysByGroup, other: ArraysByGroup) -> bool:
    """Whether two lists of arrays have the same bits."""
    return all(
        same_bits(mine, theirs)
        for mine_row, theirs_row in zip(one, other, strict=True)
        for mine, theirs in zip(mine_row, theirs_row, strict=True)
    )


def same_states(one: Sequence[Sequence[ParameterState]], other: Sequence[Sequence[ParameterState]]) -> bool:
    """Whether two states of the same parameters are equal, bit by bit and step by step."""
    return all(
        mine.keys() == theirs.keys()
        and all(
            value == theirs[name] if name == STEP else same_bits(np.asarray(value), np.asarray(theirs[name]))
            for name, value in mine.items()
        )
        for mine_row, theirs_row in zip(one, other, strict=True)
        for mine, theirs in zip(mine_row, theirs_row, strict=True)
    )


def check_alone(session: Session) -> None:
    """Raises `WorkerInUse` if this process has another open session with an optimizer for this job and worker."""
    if _rival_of(session):
        gc.collect()  # an optimizer that is garbage may be part of a reference cycle
        if _rival_of(session):
            raise WorkerInUse(job=session.job, worker=session.worker)


def _rival_of(session: Session) -> bool:
    place = (session.address, session.job, session.worker)
    return any(
        other is not session and other.is_open and other.epoch and (other.address, other.job, other.worker) == place
        for other in list(open_sessions)
    )
