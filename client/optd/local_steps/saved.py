"""The state of a worker with local steps, as a dict that can be stored; see `LocalSteps.state_dict`."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from optd.local_steps.outer import Answer
from optd.local_steps.worker import Fragment, Worker
from optd.params.flat_view import Array
from optd_wire.errors import InvalidRequest

logger = logging.getLogger("optd")


def save(worker: Worker) -> dict[str, Any]:
    """The base of the worker's differences and where its schedule stands, after what is under way has arrived.

    Arrays are copies.
    """
    worker.settle()
    worker.is_saved = True
    outer = worker.outer
    return {
        "job": outer.session.info().id,
        "pushed": list(outer.session.last_applied),
        "delay": worker.schedule.delay,
        "schedule": worker.schedule.state(),
        "fragments": [_saved(fragment) for fragment in worker.fragments],
        "base": {
            name: array.copy() for group in outer.groups for name, array in zip(group.names, group.arrays, strict=True)
        },
        "counted": {
            name: array.copy()
            for fragment in worker.fragments
            if fragment.counted is not None
            for name, array in zip(outer.names(fragment.places), fragment.counted, strict=True)
        },
    }


def _saved(fragment: Fragment) -> dict[str, Any]:
    answer = None if fragment.answer is None else fragment.answer.result()
    return {
        "version": fragment.version,
        "steps": fragment.steps,
        "sent_steps": fragment.sent_steps,
        "arrived": None if answer is None else [answer.version, answer.lost, answer.undone],
    }


def load(worker: Worker, state: Mapping[str, Any]) -> bool:
    """Goes on where a state was taken, if the job has no push of this worker since; returns whether it does.

    If it has, the worker's local weights count already, in part at least: it begins anew from the job's weights, and
    says so. Raises `InvalidRequest` for a state of other parameters, fragments or another delay.
    """
    _check(worker, state)
    worker.outer.use(told=True)
    session = worker.outer.session
    if state["job"] != session.info().id or tuple(state["pushed"]) != session.last_applied:
        logger.warning(
            "job %s: worker %s begins anew from the job's weights of now, because the job is another one than that of "
            "the saved state, or has pushes of this worker that are later; its optimizer state is that of the script",
            session.job,
            session.worker,
        )
        worker.begin()
        return False
    worker.settle()
    worker.schedule.load(state["schedule"])
    for group in worker.outer.groups:
        for name, array in zip(group.names, group.arrays, strict=True):
            array[...] = state["base"][name]
    for fragment, saved in zip(worker.fragments, state["fragments"], strict=True):
        _load(worker, fragment, saved, state["counted"])
    return True


def _load(worker: Worker, fragment: Fragment, saved: Mapping[str, Any], counted: Mapping[str, Array]) -> None:
    if fragment.index < 0:
        worker.outer.rebase(saved["version"] if saved["arrived"] is None else saved["arrived"][0])
    fragment.version, fragment.steps, fragment.sent_steps = saved["version"], saved["steps"], saved["sent_steps"]
    names = worker.outer.names(fragment.places)
    fragment.parcel = None
    fragment.counted = [counted[name].copy() for name in names] if names[0] in counted else None
    fragment.answer = None
    if saved["arrived"] is not None:
        version, lost, undone = saved["arrived"]
        fragment.answer = Future()
        fragment.answer.set_result(Answer(None, version, lost, undone))


def _check(worker: Worker, state: Mapping[str, Any]) -> None:
    own = {
        name: array.shape
        for group in worker.outer.groups
        for name, array in zip(group.names, group.arrays, strict=True)
    }
    theirs = {name: array.shape for name, array in state["base"].items()}
    for what, ours, given in (
        ("parameters", own, theirs),
        ("fragments", len(worker.fragments), len(state["fragments"])),
        ("delay", worker.schedule.delay, state["delay"]),
    ):
        if ours != given:
            raise InvalidRequest(problem=f"the state of local steps has {what} {given}, and these have {ours}")
