"""Plain values to generated messages and back.

A class of `optd_wire.values` and its message have the same name (or are paired in `_RENAMED`) and the same fields;
that is checked here once, on import, so that a field added on one side only cannot be lost in silence.
"""

import dataclasses
from typing import Any, TypeVar

from google.protobuf.message import Message

from optd_wire import values
from optd_wire.dtypes import dtype_from_enum, dtype_to_enum
from optd_wire.errors import InvalidRequest
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

# An entry of a few bytes costs a reader much more than it costs a sender. Millions of parameters fit in groups.
MAX_PARTS = 1 << 16

_RENAMED = {
    values.Membership: worker_service_pb2.JoinResponse,
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


_MESSAGE_OF = _pair()
_VALUE_OF = {message.DESCRIPTOR.full_name: value for value, message in _MESSAGE_OF.items()}


def to_message(value: Any) -> Any:
    """The message of a plain value, or of a policy or an option's value."""
    if isinstance(value, _POLICIES):
        return _policy_to_message(value)
    if not dataclasses.is_dataclass(value):
        return option_to_message(value)
    message = _MESSAGE_OF[type(value)]()
    for field in message.DESCRIPTOR.fields:
        content = getattr(value, field.name)
        if content is not None:
            _put(message, field, content)
    return message


def from_message(message: Message, value_class: type[V]) -> V:
    """The plain value of a message; sub-messages that are not set become None or their defaults."""
    value = _get(message)
    assert isinstance(value, value_class)
    return value


def options_to_message(options: values.Options) -> dict[str, option_pb2.OptionValue]:
    """A map of options as the constructor of a message takes it."""
    return {name: option_to_message(value) for name, value in options.items()}


def option_to_message(value: values.OptionValue) -> option_pb2.OptionValue:
    """The message of one option's value."""
    match value:
        case None:
            return option_pb2.OptionValue()
        case bool():
            return option_pb2.OptionValue(flag=value)
        case int():
            return option_pb2.OptionValue(integer=value)
        case float():
            return option_pb2.OptionValue(number=value)
        case str():
            return option_pb2.OptionValue(text=value)
        case tuple():
            return option_pb2.OptionValue(numbers=option_pb2.NumberList(numbers=value))


def _option_from_message(message: option_pb2.OptionValue) -> values.OptionValue:
    match message.WhichOneof("value"):
        case None:
            return None
        case "numbers":
            return tuple(message.numbers.numbers)
        case arm:
            content: bool | int | float | str = getattr(message, arm)
            return content


def _policy_to_message(policy: values.Policy) -> job_pb2.Policy:
    if isinstance(policy, values.Sync):
        return job_pb2.Policy(sync=job_pb2.SyncPolicy(workers=policy.workers))
    return job_pb2.Policy(**{"async": job_pb2.AsyncPolicy()})  # type: ignore[arg-type]


def _policy_from_message(message: job_pb2.Policy) -> values.Policy:
    if message.WhichOneof("kind") == "sync":
        return values.Sync(workers=message.sync.workers)
    return values.Async()


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _put(message: Any, field: Any, content: Any) -> None:
    target = getattr(message, field.name)
    if _is_map(field):
        if field.message_type.fields_by_name["value"].message_type is None:
            target.update(content)
        else:
            for key, item in content.items():
                target[key].CopyFrom(to_message(item))
    elif field.message_type is not None:
        if field.is_repeated:
            target.extend([to_message(item) for item in content])
        else:
            target.CopyFrom(to_message(content))
    else:
        convert = dtype_to_enum if field.enum_type is tensor_pb2.Dtype.DESCRIPTOR else _unchanged
        if field.is_repeated:
            target.extend([convert(item) for item in content])
        else:
            setattr(message, field.name, convert(content))


def _get(message: Message) -> Any:
    if isinstance(message, option_pb2.OptionValue):
        return _option_from_message(message)
    if isinstance(message, job_pb2.Policy):
        return _policy_from_message(message)
    value_class = _VALUE_OF[message.DESCRIPTOR.full_name]
    return value_class(**{field.name: _read(message, field) for field in message.DESCRIPTOR.fields})


def _read(message: Message, field: Any) -> Any:
    content = getattr(message, field.name)
    if _is_map(field):
        of_messages = field.message_type.fields_by_name["value"].message_type is not None
        # Sorted, because maps have no order on the wire and people like to see the same one twice.
        return {key: _get(content[key]) if of_messages else content[key] for key in sorted(content)}
    if field.message_type is not None:
        if not field.is_repeated:
            return _get(content)
        if len(content) > MAX_PARTS:
            raise InvalidRequest(problem=f"{field.name} must have at most {MAX_PARTS} entries, got {len(content)}")
        return tuple(_get(item) for item in content)
    convert = dtype_from_enum if field.enum_type is tensor_pb2.Dtype.DESCRIPTOR else _unchanged
    if field.is_repeated:
        return tuple(convert(item) for item in content)
    if field.has_presence and not message.HasField(field.name):
        return None
    return convert(content)


def _unchanged(content: Any) -> Any:
    return content
