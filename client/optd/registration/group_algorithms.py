"""Which algorithm each group has: the one that its dict names, else the optimizer's default algorithm.

An optimizer whose groups all name one needs no default. `param_groups` show the entry "algorithm" as soon as one group
names its own.
"""

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

from optd.caller_warnings import warn_caller
from optd.options.group_options import GROUP_OPTIONS
from optd.params.groups import ALGORITHM, ParamGroup
from optd.session.session import Session
from optd_wire.errors import InvalidRequest
from optd_wire.values import Options

_HOW = "give it the entry 'algorithm', or name a default before params, as in Optimizer('adamw', params)"


def default_and_params(algorithm: Any, params: Any) -> tuple[str, Any]:
    """The arguments of `Optimizer("adam", params)` or `Optimizer(params)`: the default algorithm, "" for none.

    Raises TypeError if one of them is missing or they are in another order.
    """
    if params is None and not isinstance(algorithm, str):
        algorithm, params = None, algorithm
    if params is None:
        raise TypeError("Optimizer() is missing params: Optimizer('adamw', params), or Optimizer(params) with groups")
    if not isinstance(algorithm, str | None):
        got = type(algorithm).__name__
        raise TypeError(f"the algorithm comes first and is a name, as in Optimizer('adamw', params), got {got}")
    return algorithm or "", params


def job_algorithm(default: str, groups: Sequence[ParamGroup]) -> str:
    """The algorithm of a job with these groups: the default one, or that of the first group if there is none.

    Raises `InvalidRequest` if a group then has no algorithm.
    """
    for group in groups:
        check_named(default, group.algorithm, group.name)
    return default or groups[0].algorithm


def check_named(default: str, named: str, group: str) -> None:
    """Raises `InvalidRequest` for a group that names no algorithm if there is no default."""
    if not default and not named:
        problem = f"group {group!r} names no algorithm, and the optimizer has no default one: {_HOW}"
        raise InvalidRequest(problem=problem)


def check_has_owner(default: str, options: Collection[str]) -> None:
    """Raises `InvalidRequest` for an option of an algorithm if there is no default algorithm that could have it."""
    stray = [name for name in options if name not in GROUP_OPTIONS]
    if stray and not default:
        problem = (
            f"the optimizer has no default algorithm that could have the option {stray[0]!r}: give the option to the "
            f"groups that have it, or name a default before params, as in Optimizer('adamw', params). Options of all "
            f"groups, whatever their algorithm, are {', '.join(GROUP_OPTIONS)}"
        )
        raise InvalidRequest(problem=problem)


def reaching(defaults: Options, default: str, named: str) -> Options:
    """Those of the optimizer's options that count for a group that names this algorithm, or none."""
    if named in ("", default):
        return defaults
    return {name: value for name, value in defaults.items() if name in GROUP_OPTIONS}


def warn_of_unreached(session: Session, default: str, defaults: Options, groups: Sequence[ParamGroup]) -> None:
    """Warns of options of the default algorithm that count for no group, because each names another algorithm."""
    if not default or any(group.algorithm in ("", default) for group in groups):
        return
    declared = {option.name: option.default_value for option in session.algorithm(default).options}
    unused = [name for name, value in defaults.items() if name in declared and value != declared[name]]
    if unused:
        warn_caller(
            f"{', '.join(f'{name}={defaults[name]!r}' for name in unused)} counts for groups of the algorithm "
            f"{default!r}, and each group names another one: give such options to the groups themselves"
        )


def show_algorithms(default: str, groups: Sequence[ParamGroup], dicts: Sequence[MutableMapping[str, Any]]) -> None:
    """Puts the entry "algorithm" into the dicts of all groups, if one of the groups names its own."""
    if any(group.algorithm for group in groups):
        for group, entry in zip(groups, dicts, strict=True):
            entry[ALGORITHM] = group.algorithm or default


def check_algorithms(default: str, groups: Sequence[ParamGroup], dicts: Sequence[Mapping[str, Any]]) -> None:
    """Raises `InvalidRequest` if a dict, of `param_groups` or of a state dict, names another algorithm than its group.

    A dict that names none fits.
    """
    for group, entry in zip(groups, dicts, strict=True):
        own, given = group.algorithm or default, entry.get(ALGORITHM)
        if given is not None and given != own:
            problem = (
                f"group {group.name!r} has the algorithm {own!r}, and a group keeps its algorithm; got {given!r}: take "
                "the state of groups with the same algorithms, or construct another optimizer"
            )
            raise InvalidRequest(problem=problem)
