"""Divides the parameters of a model among fragments of about equal bytes."""

from collections.abc import Sequence

from optd_wire.errors import InvalidRequest


def partition(sizes: Sequence[int], fragments: int) -> list[list[int]]:
    """The places of the parameters of each fragment, ascending; `sizes` are their bytes.

    Parameters stay whole. The largest come first, each to the fragment that has the fewest bytes so far, so that no
    fragment has more than the mean and one parameter. All workers that have the same sizes find the same fragments.
    Raises `InvalidRequest` for more fragments than parameters.
    """
    if fragments > len(sizes):
        problem = f"fragments must be at most {len(sizes)}, the number of parameters, which stay whole; got {fragments}"
        raise InvalidRequest(problem=problem)
    found: list[list[int]] = [[] for _ in range(fragments)]
    loads = [(0, 0)] * fragments
    """Bytes and parameters of each fragment: parameters without elements are spread, too."""
    for place in sorted(range(len(sizes)), key=lambda each: (-sizes[each], each)):
        lightest = min(range(fragments), key=lambda each: (loads[each], each))
        found[lightest].append(place)
        loads[lightest] = (loads[lightest][0] + sizes[place], loads[lightest][1] + 1)
    return [sorted(each) for each in found]
