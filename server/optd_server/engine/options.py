"""Options against the schema that their algorithm declares."""

from optd_server.optim import option, registry
from optd_server.optim.algorithm import Algorithm
from optd_wire.errors import InvalidOption, OptionOutOfRange, UnknownAlgorithm, UnknownOption
from optd_wire.values import AlgorithmInfo, OptionInfo, Options


def find_algorithm(name: str) -> Algorithm:
    """The algorithm `name`; raises `UnknownAlgorithm` with the nearest name."""
    algorithm = registry.find(name)
    if algorithm is None:
        nearest = registry.nearest(name)
        advice = f"the nearest is {nearest!r}" if nearest else f"there are {', '.join(registry.ALGORITHMS)}"
        raise UnknownAlgorithm(algorithm=name, advice=advice)
    return algorithm


def resolve_options(algorithm: Algorithm, *layers: Options) -> Options:
    """All options of the algorithm: its defaults, overridden by each layer in turn.

    Raises `UnknownOption`, `OptionOutOfRange` or `InvalidOption`.
    """
    given: dict[str, object] = {}
    for layer in layers:
        given.update(layer)
    stray = option.unknown(algorithm.options, given)
    if stray is not None:
        name, nearest = stray
        names = ", ".join(declared.name for declared in algorithm.options)
        advice = f"did you mean {nearest!r}? The" if nearest else "the"
        raise UnknownOption(algorithm=algorithm.name, option=name, advice=advice, options=names)
    violation = option.check(algorithm, given)
    if violation is not None:
        in_range = violation.bound[0] in "[("
        raise (OptionOutOfRange if in_range else InvalidOption)(
            algorithm=algorithm.name, option=violation.option, bound=violation.bound, value=violation.value
        )
    return option.resolve(algorithm.options, given)


def describe_algorithms() -> tuple[AlgorithmInfo, ...]:
    """Every algorithm with its options, state and rules, as they declare them."""
    return tuple(_describe(algorithm) for algorithm in registry.ALGORITHMS.values())


def _describe(algorithm: Algorithm) -> AlgorithmInfo:
    return AlgorithmInfo(
        name=algorithm.name,
        title=algorithm.title,
        options=tuple(
            OptionInfo(
                name=declared.name,
                kind=declared.kind,
                default_value=declared.default,
                range=declared.range_text if declared.kind != "bool" else "",
                doc=declared.doc,
            )
            for declared in algorithm.options
        ),
        state=tuple(field.name for field in algorithm.state),
        rules=tuple(f"{rule.option} must be {rule.text}" for rule in algorithm.rules),
    )
