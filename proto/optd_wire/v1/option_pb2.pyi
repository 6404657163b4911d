from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OptionValue(_message.Message):
    __slots__ = ("number", "integer", "flag", "text", "numbers", "values", "single")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SINGLE_FIELD_NUMBER: _ClassVar[int]
    number: float
    integer: int
    flag: bool
    text: str
    numbers: NumberList
    values: ValueList
    single: float
    def __init__(self, number: _Optional[float] = ..., integer: _Optional[int] = ..., flag: bool = ..., text: _Optional[str] = ..., numbers: _Optional[_Union[NumberList, _Mapping]] = ..., values: _Optional[_Union[ValueList, _Mapping]] = ..., single: _Optional[float] = ...) -> None: ...

class NumberList(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, numbers: _Optional[_Iterable[float]] = ...) -> None: ...

class ValueList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[OptionValue]
    def __init__(self, values: _Optional[_Iterable[_Union[OptionValue, _Mapping]]] = ...) -> None: ...

class GroupUpdate(_message.Message):
    __slots__ = ("group", "options", "expected_revision")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    group: str
    options: _containers.MessageMap[str, OptionValue]
    expected_revision: int
    def __init__(self, group: _Optional[str] = ..., options: _Optional[_Mapping[str, OptionValue]] = ..., expected_revision: _Optional[int] = ...) -> None: ...

class GroupOptions(_message.Message):
    __slots__ = ("group", "options", "revision", "since_version", "algorithm")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    group: str
    options: _containers.MessageMap[str, OptionValue]
    revision: int
    since_version: int
    algorithm: str
    def __init__(self, group: _Optional[str] = ..., options: _Optional[_Mapping[str, OptionValue]] = ..., revision: _Optional[int] = ..., since_version: _Optional[int] = ..., algorithm: _Optional[str] = ...) -> None: ...

class JobOptions(_message.Message):
    __slots__ = ("options", "revision", "since_version")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    options: _containers.MessageMap[str, OptionValue]
    revision: int
    since_version: int
    def __init__(self, options: _Optional[_Mapping[str, OptionValue]] = ..., revision: _Optional[int] = ..., since_version: _Optional[int] = ...) -> None: ...

class OptionInfo(_message.Message):
    __slots__ = ("name", "kind", "default_value", "range", "doc", "nullable", "choices")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    DOC_FIELD_NUMBER: _ClassVar[int]
    NULLABLE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    default_value: OptionValue
    range: str
    doc: str
    nullable: bool
    choices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., default_value: _Optional[_Union[OptionValue, _Mapping]] = ..., range: _Optional[str] = ..., doc: _Optional[str] = ..., nullable: bool = ..., choices: _Optional[_Iterable[str]] = ...) -> None: ...

class AlgorithmInfo(_message.Message):
    __slots__ = ("name", "title", "options", "state", "rules", "doc", "needs_closure", "shaped_state", "package")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    DOC_FIELD_NUMBER: _ClassVar[int]
    NEEDS_CLOSURE_FIELD_NUMBER: _ClassVar[int]
    SHAPED_STATE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    title: str
    options: _containers.RepeatedCompositeFieldContainer[OptionInfo]
    state: _containers.RepeatedScalarFieldContainer[str]
    rules: _containers.RepeatedScalarFieldContainer[str]
    doc: str
    needs_closure: bool
    shaped_state: _containers.RepeatedScalarFieldContainer[str]
    package: str
    def __init__(self, name: _Optional[str] = ..., title: _Optional[str] = ..., options: _Optional[_Iterable[_Union[OptionInfo, _Mapping]]] = ..., state: _Optional[_Iterable[str]] = ..., rules: _Optional[_Iterable[str]] = ..., doc: _Optional[str] = ..., needs_closure: bool = ..., shaped_state: _Optional[_Iterable[str]] = ..., package: _Optional[str] = ...) -> None: ...
