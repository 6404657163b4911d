"""Unique names of groups and parameters for the server; torch lets names repeat.

They depend only on the order of the groups, so that all workers that register the same groups have the same names.
"""

from collections.abc import Collection, Iterable


def distinct_name(wanted: str, taken: Collection[str]) -> str:
    """The name that is wanted, or if it is taken, the first free one of `wanted.2`, `wanted.3` and so on."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}.{number}"
    return name


def parameter_names(group: str, wanted: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names of a group's parameters: a name that is taken, in the group or elsewhere, becomes `GROUP.NAME`.

    So patterns for the ends of names, such as `*.bias`, still match.
    """
    used, names = set(taken), []
    for each in wanted:
        names.append(each if each not in used else distinct_name(f"{group}.{each}", used))
        used.add(names[-1])
    return names
