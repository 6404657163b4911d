"""The rounds that the next steps of a job wait for, as people see them."""

from collections.abc import Sequence

from optd_server.engine.clock import Clock
from optd_server.engine.job import Job
from optd_server.engine.rounds.policies.base import RoundStatus
from optd_server.engine.rounds.policies.sync_words import NAMED, named
from optd_wire.values import LEFT, RoundInfo, WorkerInfo


def open_rounds(job: Job, clock: Clock) -> tuple[RoundInfo, ...]:
    """Describe the open rounds: who is in each, who is waited for, since when, and what will release it."""
    now, wall = clock.monotonic(), clock.wall()
    return tuple(_info(job, status, now, wall) for status in job.pushes.waiting.policy.status(now))


def _info(job: Job, status: RoundStatus, now: float, wall: float) -> RoundInfo:
    def unix_ms(seconds: float | None) -> int:
        return 0 if seconds is None else int((wall + seconds - now) * 1000)

    lost = _lost(job, status.places)
    return RoundInfo(
        unix_ms=int(wall * 1000),
        step=job.state.version + 1,
        fragment=status.fragment,
        opened_unix_ms=unix_ms(status.opened),
        arrived=status.arrived,
        arriving=status.arriving,
        missing=(*job.workers.infos_of(status.missing), *lost),
        places=status.places,
        deadline_unix_ms=unix_ms(status.deadline),
        release="; ".join(filter(None, [status.release, *map(_gone, lost), _starved(job)])),
    )


def _lost(job: Job, places: int) -> Sequence[WorkerInfo]:
    """Return the workers that may have left `places` empty: those that are gone since the last step."""
    if not places:
        return ()
    since = job.state.stepped_wall
    gone = sorted((ended, name) for name, ended in job.leases.ended() if ended > since)
    return job.workers.infos_of(sorted(name for _, name in gone[-max(places, NAMED) :]))


def _starved(job: Job) -> str:
    """Tell whose gradients wait for memory; empty if none does."""
    waiting = [push.header.worker for push in job.pushes.waiting.pushes if push.spool is not None and push.spool.waits]
    if not waiting:
        return ""
    return f"no memory is left for the gradient{'s' * (len(waiting) > 1)} of {named(waiting)} (--max-memory-bytes)"


def _gone(worker: WorkerInfo) -> str:
    return f"{worker.name} has left" if worker.ended == LEFT else f"{worker.name} was lost"
