"""Sentences about rounds that several policies say."""

from collections.abc import Mapping, Sequence

NAMED = 8
"""How many workers are named; of a larger number the rest is counted."""


def listed(names: Sequence[str], last: str = "and") -> str:
    """`w0`, `w0 and w1`, `w0, w1 and w2`; of many, the first ones and how many more."""
    shown = [*names[:NAMED], *([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])]
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def awaited(here: Sequence[str], wanted: int, lost: Mapping[str, str]) -> str:
    """Say what a round waits for: `wanted` pushes of the workers that are `here`, or of others that come.

    `lost` are workers whose places are empty, with how they have gone: "left", "was lost". They are among `wanted`.
    """
    places = max(0, wanted - len(here))
    parts = []
    if here and wanted == 1:
        parts.append(f"a push of {listed(here, 'or')}")
    elif here and wanted >= len(here):
        parts.append(f"a push of {here[0]}" if len(here) == 1 else f"pushes of {listed(here)}")
    elif here:
        parts.append(f"pushes of {wanted} of {listed(here)}")
    parts += [f"a worker to replace {name}, which {how}" for name, how in lost.items()]
    new = places - len(lost)
    if new:
        parts.append("a worker that has not joined yet" if new == 1 else f"{new} workers that have not joined yet")
    return "; ".join(parts)
