"""The errors of pushes that a policy refuses."""

from optd_server.engine.rounds.policies.base import LostWorker, TooLate
from optd_server.engine.state import JobState
from optd_wire.errors import OptdError, RoundClosed, WorkerLost
from optd_wire.values import PushHeader


def refusal(state: JobState, header: PushHeader, why: TooLate | LostWorker) -> OptdError:
    """Return the error of a push that a policy refuses."""
    match why:
        case TooLate(how):
            base, now = header.base_version, state.version
            return RoundClosed(worker=header.worker, base_version=base, job=state.name, version=now, how=how)
        case LostWorker(lost, how):
            return WorkerLost(job=state.name, worker=header.worker, lost=lost, how=how)
