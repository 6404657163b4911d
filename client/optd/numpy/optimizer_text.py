"""The `repr` of optimizers: algorithm, job, version, groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from optd.params.groups import ALGORITHM, NAME, PARAMS
from optd.session.session import Session


def place_of(session: Session, version: int) -> str:
    """The job, version, worker and server of an optimizer, as text."""
    return f"job {session.job!r} at version {version}, worker {session.worker!r}, server {session.address}"


def describe(class_name: str, algorithm: str, place: str, groups: Sequence[Mapping[str, Any]]) -> str:
    """An optimizer as text: a line for it and one for each group, with the options that the server holds.

    `algorithm` is the default one; empty if there is none.
    """
    is_told = not algorithm or class_name.lower() == algorithm.replace("_", "")
    kind = class_name if is_told else f"{class_name} {algorithm!r}"
    return "\n".join([f"<optd.{kind} of {place}", *(f"  {_group(group)}" for group in groups)]) + ">"


def _group(group: Mapping[str, Any]) -> str:
    arrays = group[PARAMS]
    elements = sum(int(array.size) for array in arrays)
    count = (
        f"{len(arrays)} parameter{'' if len(arrays) == 1 else 's'}, {elements} element{'' if elements == 1 else 's'}"
    )
    options = ", ".join(f"{name}={value!r}" for name, value in group.items() if name not in (PARAMS, NAME, ALGORITHM))
    algorithm = f"{group[ALGORITHM]}, " if ALGORITHM in group else ""
    return f"group {group[NAME]!r}: {algorithm}{count}; {options}"
