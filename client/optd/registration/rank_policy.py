"""How the policy of a job follows the number of ranks, when a launcher starts more or fewer of them than before."""

import logging
from dataclasses import replace

from optd.session.job_names import launch
from optd.session.session import Session
from optd_wire.values import Policy, Sync

logger = logging.getLogger("optd")


def resized(session: Session, current: Policy, wanted: Policy | None) -> Policy | None:
    """The job's `current` policy with as many workers as the ranks' `wanted` one; None if it is not to be changed.

    Only the ranks of a launch change it, only if a person has not chosen another kind of policy meanwhile, and only if
    no other worker takes part.
    """
    launched = launch()
    if launched is None or session.policy is not None:
        return None
    if not isinstance(wanted, Sync) or not isinstance(current, Sync) or "live" in (current.workers, wanted.workers):
        return None
    if current.workers == wanted.workers or not all(name.endswith(launched.id) for name in session.other_workers()):
        return None
    assert isinstance(wanted.workers, int)
    quorum = None if current.quorum is None else min(current.quorum, wanted.workers)
    return replace(current, workers=wanted.workers, quorum=quorum)


def resize(session: Session, policy: Policy) -> Policy:
    """Changes the job's policy to that of the ranks there are now, and says so; returns it."""
    logger.warning("job %s: this launch has another number of ranks now, so its policy becomes %s", session.job, policy)
    return session.set_policy(policy)
