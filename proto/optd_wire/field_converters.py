"""Converters between the fields of a message and the fields of its value, built once from their descriptors.

This file knows descriptors and nothing of the contract, which `optd_wire.messages` knows. All look-ups in descriptors
happen here, when a converter is built; to convert a value then takes one function call for each field.
"""

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from optd_wire.errors import InvalidRequest

# An entry of a few bytes costs its reader much more than its sender. A group of millions of parameters still fits.
MAX_PARTS = 1 << 16

Fill = Callable[[Any, Any], None]
"""Writes a value into an empty message; for a field, writes the field's content, which is not None."""
Read = Callable[[Any], Any]
"""Returns the value of a message; for a field, the field's content."""


class Converter(NamedTuple):
    """Both directions for one class, or for one of its fields."""

    fill: Fill
    read: Read


class Converters:
    """The converters of all messages; builds each one on first use.

    Its arguments are keyed by descriptor: `values` has the dataclass of each message, `by_hand` the converters of
    messages without a dataclass, and `enums` the two functions that convert to an enum's number and back.
    """

    def __init__(
        self,
        values: Mapping[Any, type],
        by_hand: Mapping[Any, Converter],
        enums: Mapping[Any, tuple[Callable[[Any], int], Callable[[int], Any]]],
    ) -> None:
        self._values = values
        self._enums = enums
        self._made = dict(by_hand)

    def of(self, descriptor: Any) -> Converter:
        """The converter of the message with this descriptor."""
        made = self._made.get(descriptor)
        if made is None:
            made = self._made[descriptor] = self._make(descriptor)
        return made

    def _make(self, descriptor: Any) -> Converter:
        value_class = self._values[descriptor]
        declared = dataclasses.fields(value_class)
        names = [field.name for field in declared]
        fields = [self._field(descriptor.fields_by_name[field.name], field.default is None) for field in declared]
        fills = [(name, field.fill) for name, field in zip(names, fields, strict=True)]
        reads = [field.read for field in fields]

        def fill(message: Any, value: Any) -> None:
            for name, put in fills:
                content = getattr(value, name)
                if content is not None:
                    put(message, content)

        def read(message: Any) -> Any:
            return value_class(*[get(message) for get in reads])

        return Converter(fill, read)

    def _field(self, field: FieldDescriptor, optional: bool) -> Converter:
        if field.message_type is None:
            if field.enum_type in self._enums:
                return _enum(field, *self._enums[field.enum_type])
            return _numbers(field) if field.is_repeated else _scalar(field)
        if field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"].message_type
            return _map(field) if item is None else _map_of_messages(field, self.of(item))
        part = self.of(field.message_type)
        return _messages(field, part) if field.is_repeated else _message(field, part, optional)


def _scalar(field: FieldDescriptor) -> Converter:
    name = field.name

    def fill(message: Any, content: Any) -> None:
        setattr(message, name, content)

    def read_optional(message: Any) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    return Converter(fill, read_optional if field.has_presence else attrgetter(name))


def _enum(field: FieldDescriptor, to_number: Callable[[Any], int], from_number: Callable[[int], Any]) -> Converter:
    name = field.name

    def fill(message: Any, content: Any) -> None:
        setattr(message, name, to_number(content))

    def fill_all(message: Any, content: Any) -> None:
        getattr(message, name).extend([to_number(item) for item in content])

    def read(message: Any) -> Any:
        return from_number(getattr(message, name))

    def read_all(message: Any) -> Any:
        return tuple([from_number(item) for item in getattr(message, name)])

    return Converter(fill_all, read_all) if field.is_repeated else Converter(fill, read)


def _numbers(field: FieldDescriptor) -> Converter:
    """For every repeated field that has no messages: numbers and texts."""
    name = field.name

    def fill(message: Any, content: Any) -> None:
        if content:
            getattr(message, name).extend(content)

    def read(message: Any) -> Any:
        return tuple(getattr(message, name))

    return Converter(fill, read)


def _map(field: FieldDescriptor) -> Converter:
    name = field.name

    def fill(message: Any, content: Any) -> None:
        getattr(message, name).update(content)

    def read(message: Any) -> Any:
        return dict(sorted(getattr(message, name).items()))

    return Converter(fill, read)


def _map_of_messages(field: FieldDescriptor, part: Converter) -> Converter:
    name, fill_part, read_part = field.name, part.fill, part.read

    def fill(message: Any, content: Any) -> None:
        target = getattr(message, name)
        for key, item in content.items():
            fill_part(target[key], item)

    def read(message: Any) -> Any:
        content = getattr(message, name)
        # Sorted, because maps have no order on the wire, and people expect the same order each time.
        return {key: read_part(content[key]) for key in sorted(content)}

    return Converter(fill, read)


def _message(field: FieldDescriptor, part: Converter, optional: bool) -> Converter:
    """If the field is unset, the content is None when `optional`, else a value with its defaults."""
    name, fill_part, read_part = field.name, part.fill, part.read

    def fill(message: Any, content: Any) -> None:
        target = getattr(message, name)
        # Without this, a message with nothing but defaults would count as unset.
        target.SetInParent()
        fill_part(target, content)

    def read(message: Any) -> Any:
        return read_part(getattr(message, name))

    def read_optional(message: Any) -> Any:
        return read_part(getattr(message, name)) if message.HasField(name) else None

    return Converter(fill, read_optional if optional else read)


def _messages(field: FieldDescriptor, part: Converter) -> Converter:
    name, fill_part, read_part = field.name, part.fill, part.read

    def fill(message: Any, content: Any) -> None:
        if content:
            add = getattr(message, name).add
            for item in content:
                fill_part(add(), item)

    def read(message: Any) -> Any:
        content = getattr(message, name)
        if len(content) > MAX_PARTS:
            raise InvalidRequest(problem=f"{name} must have at most {MAX_PARTS} entries, got {len(content)}")
        return tuple([read_part(item) for item in content])

    return Converter(fill, read)
