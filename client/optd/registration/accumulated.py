"""Warnings about gradients that a job has accumulated without a step, when a state dict would not have them."""

import logging

from optd.caller_warnings import warn_caller
from optd.session.session import Session
from optd_wire.values import JobInfo

logger = logging.getLogger("optd")


def warn_of_saving(job: str, pending: int) -> None:
    """Warns that a state dict does not contain the `pending` accumulated pushes, or rounds."""
    if pending:
        warn_caller(
            f"job {job!r} has added up {_pushes(pending)} for a step that is still to come, and the state dict does "
            "not have them: call flush() first, or save when a step has just been made"
        )


def warn_of_loading(session: Session, info: JobInfo) -> None:
    """Warns that gradients which the job has accumulated become part of the first step after loading."""
    if info.options.options.get("accumulate", 1) == 1:
        return
    pending = session.pending()
    if pending:
        warn_caller(
            f"job {session.job!r} has added up {_pushes(pending)} before this load_state_dict(). They stay, as `.grad` "
            "does in torch, and become part of the next step: call flush() first if they belong to the state that is "
            "replaced"
        )


def _pushes(pending: int) -> str:
    return "one push, or round of pushes," if pending == 1 else f"{pending} pushes, or rounds of pushes,"
