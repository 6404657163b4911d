"""The round that a job's next step waits for, as people see it."""

from optd_server.engine.clock import Clock
from optd_server.engine.job import Job
from optd_wire.values import RoundInfo


def open_round(job: Job, clock: Clock) -> RoundInfo:
    """Describe the round: who is in it, who is waited for, since when, and what will release it."""
    now, wall = clock.monotonic(), clock.wall()
    status = job.pushes.waiting.policy.status(now)

    def unix_ms(seconds: float | None) -> int:
        return 0 if seconds is None else int((wall + seconds - now) * 1000)

    return RoundInfo(
        unix_ms=int(wall * 1000),
        step=job.state.version + 1,
        opened_unix_ms=unix_ms(status.opened),
        arrived=status.arrived,
        arriving=status.arriving,
        missing=job.workers.infos_of(status.missing),
        places=status.places,
        deadline_unix_ms=unix_ms(status.deadline),
        release=status.release,
    )
