"""Policies: when pushes become a step, and how much a stale gradient counts."""

from dataclasses import dataclass, fields
from typing import Literal

OnDeath = Literal["wait", "continue", "fail"]


@dataclass(frozen=True, slots=True)
class Exponential:
    """Scales a gradient of staleness t by exp(-alpha * t), and less as t nears the cutoff.

    With a `cutoff` the factor is also multiplied by (1 + cos(pi * t / cutoff)) / 2, and is 0 from the cutoff on: the
    scaling of Cosine-Gated Adam-Decay (arXiv 2605.09126), whose outer optimizer is Adam.
    """

    alpha: float = 0.1
    cutoff: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Async:
    """Makes a step of every push, in order of arrival.

    `staleness` says how a gradient is scaled: not at all (None), by 1 / (1 + t) for the staleness t ("inverse"), or by
    `optd.staleness.Exponential(...)`. t counts the steps that the job took since the weights that the gradient was
    computed on. A gradient staler than `max_staleness` is refused with `StaleGradient`.
    """

    staleness: Literal["inverse"] | Exponential | None = None
    max_staleness: int | None = None

    def __repr__(self) -> str:
        return _as_written(self)


@dataclass(frozen=True, slots=True, repr=False)
class Sync:
    """Makes a step of every round: the mean of one push from each worker, weighted by the `weight=` of the pushes.

    `workers` is how many workers a round takes a push of; with "live", of each worker that holds a lease. A round
    closes when all have pushed; or, once `quorum` of them have, when its grace window is over: at once (None), after so
    many seconds, or after a time that follows from past rounds ("auto"); or after `round_seconds`. Both times count
    from the first gradient that has arrived. A push that comes too late is refused with `RoundClosed`.

    `on_death` says what a round does when a worker has left or is lost: "wait" for one that takes its place, "continue"
    with those that are left, or "fail" with `WorkerLost`. Default: "wait", because a mean over fewer workers is another
    training; with "live": "continue".
    """

    workers: int | Literal["live"]
    quorum: int | None = None
    grace: float | Literal["auto"] | None = None
    round_seconds: float | None = None
    on_death: OnDeath | None = None

    def __repr__(self) -> str:
        return _as_written(self)


@dataclass(frozen=True, slots=True)
class Bounded:
    """Makes a step of every push, but a worker more than `staleness` steps ahead of the slowest live one waits.

    This is stale synchronous parallel (Ho et al., 2013), as Boesen and Angel have it.
    """

    staleness: int


Policy = Async | Sync | Bounded


def _as_written(policy: Async | Sync) -> str:
    """Show a policy without the settings that it has not."""
    given = {each.name: getattr(policy, each.name) for each in fields(policy)}
    inside = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    return f"{type(policy).__name__}({inside})"
