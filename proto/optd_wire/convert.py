"""Plain values to generated messages and back.

A class of `optd_wire.values` and its message have the same name (or are paired in `_RENAMED`) and the same fields;
that is checked here once, on import, so that a field added on one side only cannot be lost in silence. How the fields
of a class are converted is worked out once, too: see `optd_wire.conversion`.
"""

import dataclasses
import math
from typing import Any, TypeVar

from google.protobuf.message import Message

from optd_wire import values
from optd_wire.conversion import Conversions, Converter
from optd_wire.dtypes import dtype_from_enum, dtype_to_enum
from optd_wire.single import Single
from optd_wire.v1 import (
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
# These two are the arms of the message `Policy`, converted by hand below.
_POLICIES = (values.Async, values.Sync)
_FILES = (
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
    """The message of a plain value, or of a policy or an option's value."""
    message_class = _MESSAGE_OF.get(type(value))
    if message_class is None:
        return option_to_message(value)
    message = message_class()
    _CONVERTER_OF[type(value)].fill(message, value)
    return message


def from_message(message: Message, value_class: type[V]) -> V:
    """The plain value of a message; sub-messages that are not set become None or their defaults."""
    value = _CONVERTERS.of(message.DESCRIPTOR).read(message)
    assert isinstance(value, value_class)
    return value


def options_to_message(options: values.Options) -> dict[str, option_pb2.OptionValue]:
    """A map of options as the constructor of a message takes it."""
    return {name: option_to_message(value) for name, value in options.items()}


def option_to_message(value: values.OptionValue) -> option_pb2.OptionValue:
    """The message of one option's value."""
    message = option_pb2.OptionValue()
    _fill_option(message, value)
    return message


def _fill_option(message: option_pb2.OptionValue, value: values.OptionValue) -> None:
    match value:
        case Single():
            message.single = value
        case float():
            message.number = value
        case bool():
            message.flag = value
        case None:
            pass
        case int() if not -(1 << 63) <= value < 1 << 63:
            # It fits no option; as a float it gets to where that is said.
            message.number = _float(value)
        case int():
            message.integer = value
        case str():
            message.text = value
        case tuple():
            numbers = [entry for entry in value if entry is not None and not isinstance(entry, Single)]
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
    except OverflowError:  # of a whole number past all floats
        return math.inf if number > 0 else -math.inf


def _option_from_message(message: option_pb2.OptionValue) -> values.OptionValue:
    match message.WhichOneof("value"):
        case None:
            return None
        case "single":
            return Single(message.single)
        case "numbers":
            return tuple(message.numbers.numbers)
        case "values":
            # No tuple within a tuple: whoever sends one is told by the check of the option.
            return tuple(_option_from_message(entry) for entry in message.values.values)  # type: ignore[misc]
        case arm:
            content: bool | int | float | str = getattr(message, arm)
            return content


def _fill_policy(message: job_pb2.Policy, policy: values.Policy) -> None:
    if isinstance(policy, values.Sync):
        message.sync.workers = policy.workers
        message.sync.SetInParent()
    else:
        getattr(message, "async").SetInParent()


def _policy_from_message(message: job_pb2.Policy) -> values.Policy:
    if message.WhichOneof("kind") == "sync":
        return values.Sync(workers=message.sync.workers)
    return values.Async()


_PAIRS = _pair()
_CONVERTERS = Conversions(
    values={message.DESCRIPTOR: value for value, message in _PAIRS.items()},
    by_hand={
        option_pb2.OptionValue.DESCRIPTOR: Converter(_fill_option, _option_from_message),
        job_pb2.Policy.DESCRIPTOR: Converter(_fill_policy, _policy_from_message),
    },
    enums={tensor_pb2.Dtype.DESCRIPTOR: (dtype_to_enum, dtype_from_enum)},
)
_MESSAGE_OF: dict[type, type[Message]] = {**_PAIRS, **dict.fromkeys(_POLICIES, job_pb2.Policy)}
_CONVERTER_OF = {value: _CONVERTERS.of(message.DESCRIPTOR) for value, message in _MESSAGE_OF.items()}
