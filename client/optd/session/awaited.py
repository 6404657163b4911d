"""The workers that a round waits for, in words: who they are, where they run, and what was last heard of them."""

from collections.abc import Sequence

from optd.session.saying import lasted, listed
from optd_wire.values import EXPIRED, LEFT, ROLLED_BACK, RoundInfo, WorkerInfo

ENDS = {LEFT: "left", EXPIRED: "lease lost", ROLLED_BACK: "fenced, because the job went back"}
NAMED = 5
"""How many workers are described; the others are counted."""


def place_of(worker: WorkerInfo) -> str:
    """The process of a worker: `host b, pid 77`; empty if the server does not know it."""
    parts = [f"host {worker.host}"] * bool(worker.host) + [f"pid {worker.pid}"] * bool(worker.pid)
    return ", ".join(parts)


def ending_of(worker: WorkerInfo, unix_ms: int) -> str:
    """How the part of a worker without a lease ended, and how long ago: `left 3 s ago`."""
    how = ENDS.get(worker.ended, "lease ended")
    return how + (f" {_ago(worker.ended_unix_ms, unix_ms)}" if worker.ended_unix_ms else "")


def described(worker: WorkerInfo, unix_ms: int) -> str:
    """A worker that is waited for: `w2 (host b, pid 77, last push 14 s ago)`, `w3 (lease lost 3 s ago)`."""
    seen = f"last push {_ago(worker.last_push_unix_ms, unix_ms)}" if worker.last_push_unix_ms else "no push yet"
    told = [place_of(worker), seen if worker.active else ending_of(worker, unix_ms)]
    return f"{worker.name} ({', '.join(filter(None, told))})"


def whom(found: RoundInfo, besides: str = "") -> str:
    """The workers that a round waits for, except `besides`; empty if it waits for none.

    Where one of several may come, all of them are named. Those whose gradients are on their way are not among them.
    """
    return listed(_missing(found, besides), NAMED)


def all_whom(found: RoundInfo, besides: str = "") -> str:
    """Those of `whom`, after the workers whose gradients are on their way."""
    arriving = [f"{worker} (its gradient is on its way)" for worker in found.arriving if worker != besides]
    return listed([*arriving, *_missing(found, besides)], NAMED)


def _missing(found: RoundInfo, besides: str) -> list[str]:
    missing = [worker for worker in found.missing if worker.name != besides]
    names = [described(worker, found.unix_ms) for worker in missing]
    new = found.places - sum(not worker.active for worker in missing)
    if new > 0:
        names.append("a worker that has not joined yet" if new == 1 else f"{new} workers that have not joined yet")
    return names


def at_the_latest(found: RoundInfo, seconds_ago: float = 0.0) -> str:
    """When a round closes without those that are missing, as of `seconds_ago` later; empty if it does not."""
    if not found.deadline_unix_ms:
        return ""
    return f"at the latest in {lasted((found.deadline_unix_ms - found.unix_ms) / 1000 - seconds_ago)}"


def names_of(workers: Sequence[WorkerInfo]) -> str:
    """Their names alone."""
    return listed([worker.name for worker in workers])


def _ago(then_ms: int, now_ms: int) -> str:
    return f"{lasted((now_ms - then_ms) / 1000)} ago"
