"""The lines of the server's log about jobs and their workers: who came, who went, and why.

`durability/` writes those about jobs that are recovered or rolled back.
"""

import logging

from optd_server.engine.membership.activity import UNKNOWN, Process
from optd_server.engine.state import JobState
from optd_wire.values import OptionChange

logger = logging.getLogger("optd.jobs")


def created(state: JobState) -> None:
    """Tell of a new job."""
    _tell("job created", state)


def restored(state: JobState) -> None:
    """Tell of a job that was made of a checkpoint."""
    _tell("job restored", state, version=state.version)


def deleted(state: JobState, why: str) -> None:
    """Tell of a job that has ended."""
    _tell("job deleted", state, version=state.version, reason=why)


def policy_changed(state: JobState, change: OptionChange) -> None:
    """Tell of a policy that was replaced."""
    _tell("policy changed", state, version=change.version, policy=change.after, before=change.before)


def joined(state: JobState, worker: str, process: Process, replaced: Process | None) -> None:
    """Tell of a worker that has joined. `replaced` is the process that held a lease under its name until then."""
    more = {} if replaced is None else {"reason": _why_again(process, replaced)}
    _tell("worker joined", state, **_identity(state, worker, process), **more)


def left(state: JobState, worker: str, process: Process) -> None:
    """Tell of a worker that has left of its own accord."""
    _tell("worker left", state, **_identity(state, worker, process))


def expired(state: JobState, worker: str, process: Process, why: str) -> None:
    """Tell of a worker whose lease has run out."""
    _tell("worker expired", state, **_identity(state, worker, process), reason=why)


def no_memory(state: JobState, held: int, limit: int) -> None:
    """Tell that a push waits for memory, the first one of those that wait now."""
    _tell("pushes wait for memory", state, held_bytes=held, max_memory_bytes=limit)


def _identity(state: JobState, worker: str, process: Process) -> dict[str, object]:
    member = state.members.find(worker)
    known = {} if process == UNKNOWN else {"host": process.host, "pid": process.pid}
    return {"worker": worker, "epoch": 0 if member is None else member.epoch, **known}


def _why_again(process: Process, replaced: Process) -> str:
    if UNKNOWN in (process, replaced):
        return "its name is joined again"
    if process == replaced:
        return "the same process joins again"
    return f"it replaces host {replaced.host} pid {replaced.pid}"


def _tell(line: str, state: JobState, **values: object) -> None:
    logger.info(line, extra={"job": state.name, **values})
