"""`optd.restore()`: a job from a checkpoint, or the numbers of a checkpoint in a job that there is."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from optd.checkpoints.files import CheckpointInfo, read_info, tensors_in
from optd.checkpoints.place import Place, place_of
from optd.checkpoints.transfer import SAVE_SECONDS
from optd.checkpoints.transfer import restore as restore_job
from optd.params.flat_view import Array, FlatView
from optd.session.connect import connect
from optd.session.server_jobs import calls_of
from optd.session.session import Session
from optd.state.all_parameters import STEP, ParameterState, StateReader, StateWriter
from optd.transport.tls import TLS
from optd_wire.errors import CheckpointMismatch, InvalidRequest
from optd_wire.frames import Outgoing
from optd_wire.values import WEIGHTS, GroupSpec, JobInfo, JobSpec, ParameterSpec, WriteStateHeader

logger = logging.getLogger("optd")

LISTED = 8
"""How many names a message lists at most."""


def restore(
    path: str | os.PathLike[str],
    *,
    job: str | None = None,
    if_exists: Literal["fail", "replace", "load"] = "fail",
    partial: bool = False,
    server: str | None = None,
    token: str | None = None,
    tls: TLS | bool | None = None,
    timeout: float = SAVE_SECONDS,
    storage_options: Mapping[str, Any] | None = None,
) -> JobInfo:
    """Creates a job from a checkpoint that `session.save()` or `optctl checkpoint save` has written.

    The job goes on exactly where it was: version, weights, optimizer state, options, schedules, averages. It has no
    workers; they join it as any job that exists. `job` gives it another name than it had. Blocks for up to `timeout`
    seconds; `server`, `token` and `tls` are those of `optd.connect`.

    If the job exists: "fail" raises `JobExists`; "replace" deletes it, if no worker holds a lease in it; "load" keeps
    the job with its options, and gives it the weights, the optimizer state and the step counts of the checkpoint, by
    the names of the parameters. Then names or shapes that differ raise `CheckpointMismatch`, which lists them, unless
    `partial`, which loads the parameters that fit and logs the others.

    Raises `NoCheckpoint`, `DamagedCheckpoint`, `WrongCheckpoint`, `JobInUse`, `OtherWorkers`, `MemoryExceeded`.
    """
    if if_exists not in ("fail", "replace", "load"):
        raise InvalidRequest(problem=f"if_exists must be 'fail', 'replace' or 'load', got {if_exists!r}")
    if partial and if_exists != "load":
        raise InvalidRequest(problem=f"partial=True needs if_exists='load': with {if_exists!r} everything is restored")
    place = place_of(path, storage_options)
    with calls_of(server, token, tls) as transport:
        name = job or read_info(place).job
        exists = any(each.name == name for each in transport.list_jobs(timeout))
        if if_exists != "load" or not exists:
            return restore_job(transport, place, timeout, job=name, replace=if_exists == "replace")
    worker = f"restore-{secrets.token_hex(4)}"
    with connect(server, job=name, worker=worker, token=token, tls=tls, timeout=timeout, progress=False) as session:
        return load_into(session, place, partial=partial)


def load_into(session: Session, place: Place, *, partial: bool) -> JobInfo:
    """Loads a checkpoint into the job of a session, which takes part in it meanwhile; see `restore`."""
    info = session.info()
    stored = read_info(place)
    difference = _difference(stored, info)
    if not partial and not difference.is_empty:
        differences = f"{difference}; partial=True (--partial) loads what fits"
        raise CheckpointMismatch(place=place.url, job=info.name, differences=differences)
    fits = {each.name for each in _parameters(stored)} - difference.unfit
    if not fits:
        raise CheckpointMismatch(place=place.url, job=info.name, differences=f"nothing fits: {difference}")
    groups = tuple(
        GroupSpec(
            group.options.group,
            group.options.options,
            tuple(ParameterSpec(each.name, each.shape, each.dtype) for each in group.parameters),
            group.options.algorithm,
        )
        for group in info.groups
    )
    spec = JobSpec(info.name, info.algorithm, info.defaults, groups, options=info.options.options)
    membership, _ = session.register(spec, lambda: iter(()))
    weights, states = _overlaid(session, place, groups, fits, stored)
    view = FlatView([group.parameters for group in groups], batch_bytes=session.batch_bytes)
    writer = StateWriter([[each.name for each in group.parameters] for group in groups], states)

    def numbers() -> Iterator[Sequence[Outgoing]]:
        yield from view.batches(weights, WEIGHTS)
        yield from writer.frames()

    session.write_state(
        WriteStateHeader(session.job, session.worker, session.epoch, writer.groups, if_alone_at=membership.job.version),
        numbers,
    )
    if not difference.is_empty:
        logger.warning("job %s: loaded %d parameters of %s; left out: %s", info.name, len(fits), place.url, difference)
    return session.info()


class Difference(NamedTuple):
    """How the parameters of a checkpoint and of a job differ, by name."""

    missing: list[str]
    """What the job has and the checkpoint lacks."""
    additional: list[str]
    """What the checkpoint has and the job lacks."""
    reshaped: list[str]
    """What both have in different shapes or dtypes, in words."""
    unfit: set[str]
    """The names of the checkpoint that cannot be loaded."""

    @property
    def is_empty(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.additional or self.reshaped)

    def __str__(self) -> str:
        named = {"missing": self.missing, "additional": self.additional, "reshaped": self.reshaped}
        return "; ".join(f"{what} {_listed(names)}" for what, names in named.items() if names)


def _difference(stored: CheckpointInfo, info: JobInfo) -> Difference:
    theirs = {each.name: each for each in _parameters(stored)}
    ours = {each.name: each for group in info.groups for each in group.parameters}
    reshaped = {
        name: f"{name} {list(theirs[name].shape)} {theirs[name].dtype}, here {list(each.shape)} {each.dtype}"
        for name, each in ours.items()
        if name in theirs and (theirs[name].shape, theirs[name].dtype) != (each.shape, each.dtype)
    }
    additional = [name for name in theirs if name not in ours]
    return Difference(
        [name for name in ours if name not in theirs],
        additional,
        list(reshaped.values()),
        {*additional, *reshaped},
    )


def _parameters(stored: CheckpointInfo) -> list[Any]:
    return [each for group in stored.groups for each in group.parameters]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def _overlaid(
    session: Session, place: Place, groups: Sequence[GroupSpec], fits: set[str], stored: CheckpointInfo
) -> tuple[list[list[Array | None]], list[list[ParameterState]]]:
    """The weights to write, and the states of all parameters: the checkpoint's where it fits, else the job's."""
    theirs = tensors_in(place, WEIGHTS)
    weights = [[theirs.get(each.name) if each.name in fits else None for each in group.parameters] for group in groups]
    reader = StateReader([group.parameters for group in groups])
    session.read_state(into=reader.begin)
    states = reader.states()
    of_parameter: dict[str, ParameterState] = {
        each.name: {STEP: each.steps} if each.steps else {} for each in _parameters(stored)
    }
    for key, array in tensors_in(place, "state").items():
        field, _, name = key.partition("/")
        of_parameter[name][field] = np.asarray(array)
    for row, group in zip(states, groups, strict=True):
        for index, parameter in enumerate(group.parameters):
            if parameter.name in fits:
                row[index] = of_parameter[parameter.name]
    return weights, states
