"""Plain values to generated messages and back.

A class of `optd_wire.values` and its message have the same fields, and the same name unless `_RENAMED` pairs them.
This is checked on import, so that a field that is added on one side only cannot get lost silently. The converters of
the fields are built on import too: see `optd_wire.field_converters`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from google.protobuf.message import Message

from optd_wire import values
from optd_wire.dtypes import dtype_from_enum, dtype_to_enum
from optd_wire.field_converters import Converter, Converters
from optd_wire.lease_ends import lease_end_from_enum, lease_end_to_enum
from optd_wire.policy_messages import fill_policy, policy_from_message
from optd_wire.v1 import (
    checkpoint_service_pb2,
    inspection_service_pb2,
    job_pb2,
    job_service_pb2,
    option_pb2,
    state_service_pb2,
    tensor_pb2,
    training_service_pb2,
    worker_service_pb2,
)

V = TypeVar("V")

_RENAMED = {
    values.JobUpdate: job_service_pb2.UpdateJobRequest,
    values.Membership: worker_service_pb2.JoinResponse,
    values.SharedMemory: worker_service_pb2.OpenSharedMemoryResponse,
    values.ServerStatus: inspection_service_pb2.GetServerStatusResponse,
    values.JobReport: inspection_service_pb2.WatchJobResponse,
}
# Policies and their parts: `policy_messages` converts them.
_POLICIES = (values.Async, values.Sync, values.Bounded, values.Exponential)
_FILES = (
    checkpoint_service_pb2,
    inspection_service_pb2,
    job_pb2,
    job_service_pb2,
    option_pb2,
    state_service_pb2,
    tensor_pb2,
    training_service_pb2,
    worker_service_pb2,
)


def _pair() -> dict[type, type[Message]]:
    by_name = {name: getattr(file, name) for file in _FILES for name in file.DESCRIPTOR.message_types_by_name}
    pairs: dict[type, type[Message]] = {}
    for value_class in vars(values).values():
        if not dataclasses.is_dataclass(value_class) or value_class in _POLICIES:
            continue
        assert isinstance(value_class, type)
        message_class: type[Message] = _RENAMED.get(value_class) or by_name[value_class.__name__]
        ours = [field.name for field in dataclasses.fields(value_class)]
        if sorted(ours) != sorted(message_class.DESCRIPTOR.fields_by_name):
            raise ImportError(f"{value_class.__name__} and its message differ in their fields")
        pairs[value_class] = message_class
    return pairs


def to_message(value: Any) -> Any:
    """The message of a plain value, a policy or the value of an option."""
    message_class = _MESSAGE_OF.get(type(value))
    if message_class is None:
        return option_to_message(value)
    message = message_class()
    _CONVERTER_OF[type(value)].fill(message, value)
    return message


def from_message(message: Message, value_class: type[V]) -> V:
    """The plain value of a message; a sub-message that is unset becomes None, or a value with its defaults."""
    value = _CONVERTERS.of(message.DESCRIPTOR).read(message)
    assert isinstance(value, value_class)
    return value


def options_to_message(options: values.Options) -> dict[str, option_pb2.OptionValue]:
    """Options as the map that the constructor of a message takes."""
    return {name: option_to_message(value) for name, value in options.items()}


def options_from_message(message: Mapping[str, option_pb2.OptionValue]) -> values.Options:
    """The options in the map of a message."""
    return {name: _option_from_message(value) for name, value in message.items()}


def option_to_message(value: values.OptionValue) -> option_pb2.OptionValue:
    """The message of the value of one option."""
    message = option_pb2.OptionValue()
    _fill_option(message, value)
    return message


def _fill_option(message: option_pb2.OptionValue, value: values.OptionValue) -> None:
    match value:
        case values.Single():
            message.single = value
        case float():
            message.number = value
        case bool():
            message.flag = value
        case None:
            pass
        case int() if not -(1 << 63) <= value < 1 << 63:
            # No option can be so large. As a float it reaches the check that says so.
            message.number = _float(value)
        case int():
            message.integer = value
        case str():
            message.text = value
        case tuple():
            numbers = [entry for entry in value if entry is not None and not isinstance(entry, values.Single)]
            if len(numbers) == len(value):
                message.numbers.numbers.extend(map(_float, numbers))
                message.numbers.SetInParent()
            else:
                for entry in value:
                    _fill_option(message.values.values.add(), entry)
        case _:
            raise TypeError(f"no option can be {value!r}")


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond the largest float
        return math.inf if number > 0 else -math.inf


def _option_from_message(message: option_pb2.OptionValue) -> values.OptionValue:
    match message.WhichOneof("value"):
        case None:
            return None
        case "single":
            return values.Single(message.single)
        case "numbers":
            return tuple(message.numbers.numbers)
        case "values":
            # A tuple within a tuple is invalid, and the check of the option refuses it.
            return tuple(_option_from_message(entry) for entry in message.values.values)  # type: ignore[misc]
        case arm:
            content: bool | int | float | str = getattr(message, arm)
            return content


_PAIRS = _pair()
_CONVERTERS = Converters(
    values={message.DESCRIPTOR: value for value, message in _PAIRS.items()},
    by_hand={
        option_pb2.OptionValue.DESCRIPTOR: Converter(_fill_option, _option_from_message),
        job_pb2.Policy.DESCRIPTOR: Converter(fill_policy, policy_from_message),
    },
    enums={
        tensor_pb2.Dtype.DESCRIPTOR: (dtype_to_enum, dtype_from_enum),
        worker_service_pb2.LeaseEnd.DESCRIPTOR: (lease_end_to_enum, lease_end_from_enum),
    },
)
_MESSAGE_OF: dict[type, type[Message]] = {**_PAIRS, **dict.fromkeys(get_args(values.Policy), job_pb2.Policy)}
_CONVERTER_OF = {value: _CONVERTERS.of(message.DESCRIPTOR) for value, message in _MESSAGE_OF.items()}
