"""What an open round waits for, in words."""

from collections.abc import Sequence

NAMED = 5
"""So many workers are named; more are counted."""


def release_of(*, waited_for: Sequence[str], places: int, more_for_quorum: int, seconds: float | None) -> str:
    """Return what closes a round.

    `waited_for` are the workers that it waits for, and `places` is how many further ones. `more_for_quorum` is how many
    pushes it lacks before its time can close it, and `seconds` how long that will take; None: no time closes it.
    """
    parts = []
    if waited_for:
        parts.append(f"pushes of {named(waited_for)}")
    if places:
        parts.append(f"{places} more worker{'s' * (places > 1)} to join")
    everybody = " and ".join(parts)
    if seconds is not None:
        return (
            f"{everybody}; or its time, which is up in {seconds:.1f} s"
            if everybody
            else f"its time, in {seconds:.1f} s"
        )
    if more_for_quorum and everybody:
        return f"{everybody}; {more_for_quorum} more push{'es make' if more_for_quorum > 1 else ' makes'} its quorum"
    return everybody or "its gradients to be added up"


def named(workers: Sequence[str]) -> str:
    """Return the names of workers, some of them if there are many."""
    if len(workers) <= NAMED:
        return ", ".join(workers)
    return f"{', '.join(workers[:NAMED])} and {len(workers) - NAMED} more"
