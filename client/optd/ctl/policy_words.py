"""What a policy does, in plain words."""

from optd_wire.values import Async, Bounded, Exponential, Policy, Sync

_DEATHS = {
    "wait": "a place that is empty waits for a worker that takes it",
    "continue": "it goes on without workers that are gone",
    "fail": "it fails when a worker is gone",
}


def meaning(policy: Policy) -> str:
    """What a policy does."""
    match policy:
        case Async():
            return _async(policy)
        case Bounded():
            ahead = f"{policy.staleness} step{'' if policy.staleness == 1 else 's'}"
            return f"each push makes a step, but a worker more than {ahead} ahead of the slowest one waits"
        case Sync():
            return _sync(policy)


def _async(policy: Async) -> str:
    parts = ["each push makes a step at once, in order of arrival"]
    match policy.staleness:
        case "inverse":
            parts.append("a gradient that is t versions old counts 1 / (1 + t)")
        case Exponential():
            parts.append(f"old gradients count less, by exp(-{policy.staleness.alpha:g}) for each version")
    if policy.max_staleness is not None:
        parts.append(f"one of more than {policy.max_staleness} versions is refused")
    return "; ".join(parts)


def _sync(policy: Sync) -> str:
    whom = "worker that holds a lease" if policy.workers == "live" else f"of {policy.workers} workers"
    parts = [f"a step takes one push of each {whom}"]
    if policy.quorum is not None:
        parts.append(f"or of {policy.quorum} of them, {_window(policy)}")
    if policy.round_seconds is not None:
        fewest = "those that are there" if policy.quorum is None else "a quorum"
        parts.append(f"or of {fewest} {policy.round_seconds:g} s after its first gradient")
    on_death = policy.on_death or ("continue" if policy.workers == "live" else "wait")
    return f"{', '.join(parts)}; {_DEATHS[on_death]}"


def _window(policy: Sync) -> str:
    match policy.grace:
        case None:
            return "as soon as they are there"
        case "auto":
            return "after a grace window that follows how far apart pushes arrive"
        case _:
            return f"after a grace window of {policy.grace:g} s"
