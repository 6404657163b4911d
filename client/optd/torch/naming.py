"""Names for the server, where every group and every parameter of a job has its own: torch lets names repeat.

They follow from the order of the groups alone, so that every worker that registers the same ones has the same names.
"""

from collections.abc import Collection, Iterable


def distinct_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or where that is taken `wanted.2`, `wanted.3`, …: the first that is not."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}.{number}"
    return name


def parameter_names(group: str, wanted: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names of a group's parameters: one that is taken, in the group or elsewhere, has the group's before it.

    So patterns for the ends of names, such as `*.bias`, go on matching.
    """
    used, names = set(taken), []
    for each in wanted:
        names.append(each if each not in used else distinct_name(f"{group}.{each}", used))
        used.add(names[-1])
    return names
