"""The options of a job as a whole, and how they change."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from optd_server.engine.options.resolution import resolve_job_options, schema_of
from optd_server.optim import option
from optd_server.optim.algorithm import Algorithm, Iterative
from optd_server.optim.job_options import ACCUMULATE, JOB
from optd_wire.errors import InvalidOption, JobOptionConflict, UnknownOption
from optd_wire.values import JobOptions, JobUpdate, Options


def initial(options: Options) -> JobOptions:
    """Returns the options of a job that is created with `options`; raises the problem of one."""
    return JobOptions(resolve_job_options(options))


def check_job_options(algorithms: Iterable[Algorithm], options: Options) -> None:
    """Raises `InvalidOption` for an option that the algorithms of the job's groups rule out."""
    for algorithm in algorithms:
        if isinstance(algorithm, Iterative) and gradients_kept(options):
            bound = f"1, as {algorithm.name} asks for each loss and gradient by itself"
            value = option.integer(options, ACCUMULATE)
            raise InvalidOption(algorithm=JOB.name, option=ACCUMULATE, bound=bound, value=value)


def gradients_kept(options: Options) -> int:
    """Returns how many whole gradients the job keeps, besides those of pushes in flight."""
    return int(option.integer(options, ACCUMULATE) > 1)


def _check_places(algorithms: Iterable[Algorithm], update: JobUpdate) -> None:
    """Raises `UnknownOption` for a group option, and says how to set it."""
    of_groups = {option.name for algorithm in algorithms for option in schema_of(algorithm).options}
    of_groups -= {option.name for option in JOB.options}
    for name in update.options:
        if name in of_groups:
            advice = f"`{name}` is a group option: `optctl set JOB GROUP {name}=…`; the job's own"
            raise UnknownOption(
                algorithm="job", option=name, advice=advice, options=", ".join(each.name for each in JOB.options)
            )


def plan_update(algorithms: Sequence[Algorithm], current: JobOptions, update: JobUpdate, version: int) -> JobOptions:
    """Returns a job's options after an update at `version`, or `current` itself if nothing changes.

    `algorithms` are those of its groups. Raises `JobOptionConflict`, or the problem of a value.
    """
    _check_places(algorithms, update)
    resolved = resolve_job_options(current.options, update.options)
    check_job_options(algorithms, resolved)
    if resolved == current.options:
        return current
    if update.expected_revision not in (None, current.revision):
        changed = next(name for name in resolved if resolved[name] != current.options[name])
        raise JobOptionConflict(
            job=update.job,
            option=changed,
            ours=resolved[changed],
            theirs=current.options[changed],
            since=current.since_version,
        )
    return replace(current, options=resolved, revision=current.revision + 1, since_version=version)
