"""The state fields of a group as the contract addresses them: their flat buffers, shapes and sizes."""

from collections.abc import Iterable, Sequence
from math import prod

from optd_server.engine.options.by_name import fields, match
from optd_server.engine.options.resolution import algorithm_of, resolve_group
from optd_server.optim.algorithm import Algorithm, Iterative, StateField
from optd_server.store.flat import computed_bytes_of
from optd_wire.dtypes import COMPUTED, DTYPES
from optd_wire.layout import GroupLayout, lay_out
from optd_wire.values import GroupSpec, Options, ParameterInfo, ParameterSpec, StateShape

NOTHING = (0,)
"""The shape of a state that a parameter does not have."""


def shapes_of(field: StateField, group: GroupLayout) -> tuple[StateShape, ...]:
    """Returns the shape and dtype that a state field has for each parameter of a group."""
    return tuple(StateShape(_shape(field, parameter), _dtype(field, parameter)) for parameter in group.parameters)


def layout_of(shapes: Sequence[StateShape], group: GroupLayout) -> GroupLayout:
    """Returns the layout of a field with these shapes: that of a group whose parameters are the states."""
    return lay_out(
        [
            ParameterSpec(parameter.name, shape.sizes, shape.dtype)
            for parameter, shape in zip(group.parameters, shapes, strict=True)
        ]
    )


def planned_state_bytes(group: GroupSpec, algorithm: Algorithm, defaults: Options) -> int:
    """Returns the bytes of a checked group's state, in a job with this algorithm and these defaults.

    They include the working memory of a step that takes several pushes.
    """
    own, resolved, layout = (
        algorithm_of(group, algorithm),
        resolve_group(group, algorithm, defaults),
        lay_out(group.parameters),
    )
    needed = fields(own, resolved, match(resolved, [parameter.name for parameter in group.parameters]))
    return state_bytes(needed, layout) + working_bytes(own, resolved, layout)


def state_bytes(fields: Iterable[StateField], group: GroupLayout) -> int:
    """Returns how many bytes these state fields of a group take."""
    return sum(_bytes_of(field, group) for field in fields)


def working_bytes(algorithm: Algorithm, options: Options, group: GroupLayout) -> int:
    """Returns the bytes that a step keeps between the pushes that it takes, besides its state; 0 if it takes one."""
    if not isinstance(algorithm, Iterative):
        return 0
    return algorithm.working_vectors(options) * computed_bytes_of([group])


def _bytes_of(field: StateField, group: GroupLayout) -> int:
    if field.elementwise and not field.narrow_only:
        return computed_bytes_of([group])
    return sum(
        prod(_shape(field, parameter)) * DTYPES[_dtype(field, parameter)].itemsize
        for parameter in group.parameters
        if has(field, parameter.dtype)
    )


def has(field: StateField, dtype: str) -> bool:
    """Whether parameters of this dtype have the state field."""
    return COMPUTED[dtype] != dtype or not field.narrow_only


def _dtype(field: StateField, parameter: ParameterInfo) -> str:
    return field.dtype or COMPUTED[parameter.dtype]


def _shape(field: StateField, parameter: ParameterInfo) -> tuple[int, ...]:
    shape = field.shape(parameter.shape)
    return NOTHING if shape is None else shape
