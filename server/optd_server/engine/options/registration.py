"""Checks the registration of a new job, and compares the registration of an attaching worker with the existing job."""

from collections.abc import Iterable, Iterator, Sequence

from optd_server.engine.options.by_name import check_matches, check_rules, match
from optd_server.engine.options.job_options import check_job_options
from optd_server.engine.options.resolution import (
    algorithm_of,
    check_defaults,
    find_algorithm,
    resolve_group,
    resolve_job_options,
)
from optd_server.optim.algorithm import Algorithm, Iterative
from optd_server.optim.rules import Matches
from optd_wire.dtypes import check_dtype
from optd_wire.errors import (
    DuplicateName,
    EmptyGroup,
    InvalidShape,
    JobMismatch,
    ParameterInTwoGroups,
    UnservedGroups,
    UnservedShape,
)
from optd_wire.names import check_label, check_name
from optd_wire.values import GroupInfo, GroupSpec, JobInfo, JobSpec, Options, ParameterInfo, ParameterSpec, Policy

MAX_DIMS = 64  # numpy's own bound
MAX_ELEMENTS = 1 << 40
LISTED = 8
"""How many names an error message lists at most."""


def check_job(spec: JobSpec) -> None:
    """Raise the first problem of a registration."""
    check_name("job", spec.name)
    algorithm = find_algorithm(spec.algorithm)
    check_defaults(algorithm, spec.defaults)
    algorithms = [algorithm_of(group, algorithm) for group in spec.groups]
    check_job_options(algorithms, resolve_job_options(spec.options))
    if not any(group.parameters for group in spec.groups):
        raise EmptyGroup(what=f"job {spec.name!r}")
    holders: dict[str, str] = {}
    names: set[str] = set()
    for group, own in zip(spec.groups, algorithms, strict=True):
        if group.name in names:
            raise DuplicateName(kind="group", name=group.name, job=spec.name)
        names.add(group.name)
        check_group(group, spec.name, own, holders)
    check_matches([check_options(group, algorithm, spec.defaults) for group in spec.groups])
    check_one_vector(algorithms, spec.groups)


def check_group(group: GroupSpec, job: str, algorithm: Algorithm, holders: dict[str, str]) -> None:
    """Raise the first problem of a group whose algorithm is `algorithm`.

    `holders` maps each parameter to the group that holds it. The parameters of this group are added to it.
    """
    check_label("group", group.name)
    for parameter in group.parameters:
        check_label("parameter", parameter.name)
        holder = holders.setdefault(parameter.name, group.name)
        if holder != group.name:
            raise ParameterInTwoGroups(parameter=parameter.name, first=holder, second=group.name)
        _check_parameter(parameter)
        _check_served(parameter, algorithm)
    if len({parameter.name for parameter in group.parameters}) < len(group.parameters):
        seen: set[str] = set()
        twice = next(p.name for p in group.parameters if p.name in seen or seen.add(p.name))  # type: ignore[func-returns-value]
        raise DuplicateName(kind="parameter", name=twice, job=job)


def check_options(group: GroupSpec, algorithm: Algorithm, defaults: Options) -> Matches | None:
    """Check the options and rules of a group; return the parameters that each rule matches.

    `algorithm` and `defaults` are the job's own. Raise the first problem of the options or rules.
    """
    options = resolve_group(group, algorithm, defaults)
    matches = match(options, [parameter.name for parameter in group.parameters])
    check_rules(algorithm_of(group, algorithm), options, matches)
    return matches


def check_together(algorithms: Iterable[Algorithm], groups: Sequence[str]) -> None:
    """Raise `UnservedGroups` if an algorithm that must have the only group of its job has company."""
    for algorithm in algorithms:
        if isinstance(algorithm, Iterative) and len(groups) > 1:
            raise UnservedGroups(algorithm=algorithm.name, got=f"{len(groups)} groups, {_listed(groups)}")


def check_one_vector(algorithms: Sequence[Algorithm], groups: Sequence[GroupSpec]) -> None:
    """Raise `UnservedGroups` if an algorithm needs all parameters as one vector, and they cannot form one."""
    check_together(algorithms, [group.name for group in groups])
    for algorithm, group in zip(algorithms, groups, strict=True):
        by_dtype = {parameter.dtype: parameter.name for parameter in group.parameters}
        if isinstance(algorithm, Iterative) and len(by_dtype) > 1:
            got = " and ".join(f"{dtype} ({name!r})" for dtype, name in by_dtype.items())
            raise UnservedGroups(algorithm=algorithm.name, got=got)


def _check_parameter(parameter: ParameterSpec) -> None:
    check_dtype(parameter.name, parameter.dtype)
    # Each dimension is checked by itself, too: an empty parameter has size 0 whatever its other dimensions are.
    if len(parameter.shape) > MAX_DIMS or max((*parameter.shape, parameter.size)) > MAX_ELEMENTS:
        raise InvalidShape(
            parameter=parameter.name,
            shape=parameter.shape[: MAX_DIMS + 1],
            max_dims=MAX_DIMS,
            max_elements=MAX_ELEMENTS,
        )


def _check_served(parameter: ParameterSpec, algorithm: Algorithm) -> None:
    problem = None if algorithm.shape_problem is None else algorithm.shape_problem(parameter.shape)
    if problem is not None:
        raise UnservedShape(
            algorithm=algorithm.name, parameter=parameter.name, problem=problem, shape=parameter.shape[: MAX_DIMS + 1]
        )


def check_same(spec: JobSpec, found: JobInfo, created_with: int, first_policy: Policy) -> None:
    """Raise `JobMismatch`, which shows both sides, unless `spec` matches the job.

    Options are not compared: they belong to the job, and may have changed since it was created. If the spec names a
    policy, it must be the job's, or the `first_policy` that the job was created with: a script need not follow what
    somebody has changed since. The spec must list the groups that the job was `created_with`, and may list those that
    were added later.
    """
    job, algorithm, groups = found.name, found.algorithm, found.groups
    if spec.algorithm != algorithm:
        raise JobMismatch(job=job, aspect="algorithm", theirs=repr(algorithm), ours=repr(spec.algorithm))
    if spec.policy is not None and spec.policy not in (found.policy, first_policy):
        raise JobMismatch(job=job, aspect="policy", theirs=found.policy, ours=spec.policy)
    if not created_with <= len(spec.groups) <= len(groups):
        theirs, ours = [group.options.group for group in groups], [group.name for group in spec.groups]
        raise JobMismatch(job=job, aspect=f"{len(theirs)} groups", theirs=_listed(theirs), ours=_listed(ours))
    for given, group in zip(spec.groups, groups, strict=False):
        check_same_group(given, job, algorithm, group)


def check_same_group(spec: GroupSpec, job: str, algorithm: str, group: GroupInfo) -> None:
    """Raise `JobMismatch` unless the group has the spec's name, algorithm and parameters.

    `algorithm` is the job's own.
    """
    name, theirs, ours = group.options.group, group.options.algorithm, spec.algorithm or algorithm
    if spec.name != name:
        raise JobMismatch(job=job, aspect=f"group {group.index} named", theirs=repr(name), ours=repr(spec.name))
    if ours != theirs:
        raise JobMismatch(job=job, aspect=f"in group {name!r} algorithm", theirs=repr(theirs), ours=repr(ours))
    for aspect, there, here in _differences(group.parameters, spec.parameters):
        raise JobMismatch(job=job, aspect=f"in group {name!r} {aspect}", theirs=there, ours=here)


def _differences(
    theirs: Sequence[ParameterInfo], ours: Sequence[ParameterSpec]
) -> Iterator[tuple[str, object, object]]:
    if len(theirs) != len(ours):
        names = [parameter.name for parameter in theirs], [parameter.name for parameter in ours]
        yield f"{len(theirs)} parameters", _listed(names[0]), f"{len(ours)}, {_listed(names[1])}"
    for index, (there, here) in enumerate(zip(theirs, ours, strict=False)):
        if there.name != here.name:
            yield f"parameter {index} named", repr(there.name), repr(here.name)
        if there.shape != here.shape:
            yield f"parameter {here.name!r} with shape", there.shape, here.shape
        if there.dtype != here.dtype:
            yield f"parameter {here.name!r} with dtype", there.dtype, here.dtype


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return f"({shown}, ...)" if len(names) > LISTED else f"({shown})"
