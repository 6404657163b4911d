"""Plain values to messages and back: nothing is lost, whatever the values."""

import dataclasses
from typing import Any

import pytest
from contract.plain import files
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optd_wire import values
from optd_wire.messages import from_message, option_to_message, options_to_message, to_message
from optd_wire.v1 import job_pb2, option_pb2, tensor_pb2, worker_service_pb2
from optd_wire.values import Single

RENAMED = {
    "Membership": "JoinResponse",
    "ServerStatus": "GetServerStatusResponse",
    "JobReport": "WatchJobResponse",
    "JobUpdate": "UpdateJobRequest",
    "SharedMemory": "OpenSharedMemoryResponse",
}
MESSAGES = {name: getattr(file, name) for file in files() for name in file.DESCRIPTOR.message_types_by_name}
VALUES = [found for found in vars(values).values() if dataclasses.is_dataclass(found)]
PAIRS = {
    MESSAGES[RENAMED.get(value.__name__, value.__name__)].DESCRIPTOR.full_name: value
    for value in VALUES
    if value not in (values.Async, values.Sync, values.Bounded, values.Exponential)
}

floats = st.floats(allow_nan=False)
texts = st.text(max_size=5)
uint32 = st.integers(0, 2**32 - 1)
option_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    floats,
    texts,
    st.lists(floats, max_size=3).map(tuple),
)
scales = st.one_of(
    st.none(), st.just("inverse"), st.builds(values.Exponential, alpha=floats, cutoff=st.none() | floats)
)
policies = st.one_of(
    st.builds(values.Async, staleness=scales, max_staleness=st.none() | st.integers(0, 2**63)),
    st.builds(
        values.Sync,
        workers=st.just("live") | uint32,
        quorum=st.none() | uint32,
        grace=st.none() | st.just("auto") | floats,
        round_seconds=st.none() | floats,
        on_death=st.sampled_from([None, "wait", "continue", "fail"]),
    ),
    st.builds(values.Bounded, staleness=uint32),
)
SCALARS = {
    FieldDescriptor.TYPE_STRING: texts,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=5),
    FieldDescriptor.TYPE_DOUBLE: floats,
    FieldDescriptor.TYPE_UINT32: uint32,
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
}


def value_of(descriptor: Descriptor) -> st.SearchStrategy[Any]:
    """Any value of the class that goes with a message."""
    if descriptor is option_pb2.OptionValue.DESCRIPTOR:
        return option_values
    if descriptor is job_pb2.Policy.DESCRIPTOR:
        return policies
    fields = {field.name: content_of(field) for field in descriptor.fields}
    return st.builds(PAIRS[descriptor.full_name], **fields)


def content_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, item = message.fields_by_name["key"], message.fields_by_name["value"]
        return st.dictionaries(content_of(key), content_of(item), max_size=3)
    if field.enum_type is tensor_pb2.Dtype.DESCRIPTOR:
        one = st.sampled_from(["float32", "float64", "unspecified"])
    elif field.enum_type is worker_service_pb2.LeaseEnd.DESCRIPTOR:
        one = st.sampled_from(["", values.LEFT, values.EXPIRED, values.REPLACED, values.ROLLED_BACK])
    else:
        one = SCALARS[field.type] if message is None else value_of(message)
    if field.is_repeated:
        return st.lists(one, max_size=2).map(tuple)
    return st.none() | one if message is None and field.has_presence else one


@pytest.mark.parametrize("value_class", PAIRS.values(), ids=lambda value: value.__name__)
def test_every_value_comes_back(value_class: type):
    message_class: type[Message] = MESSAGES[RENAMED.get(value_class.__name__, value_class.__name__)]

    @given(value_of(message_class.DESCRIPTOR))
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    def comes_back(value: Any) -> None:
        sent = to_message(value).SerializeToString()
        assert from_message(message_class.FromString(sent), value_class) == value

    comes_back()


def test_what_is_not_set_becomes_the_default():
    """An empty message of each kind is a value; what it means is for the engine to check."""
    for name, value_class in PAIRS.items():
        message_class = MESSAGES[name.rpartition(".")[2]]
        assert isinstance(from_message(message_class(), value_class), value_class)
    spec = from_message(job_pb2.JobSpec(name="j"), values.JobSpec)
    assert spec == values.JobSpec("j", "", {}, (), policy=None)
    update = from_message(option_pb2.GroupUpdate(group="g"), values.GroupUpdate)
    assert update.expected_revision is None
    assert from_message(option_pb2.GroupUpdate(expected_revision=0), values.GroupUpdate).expected_revision == 0


@given(option_values)
def test_option_values_come_back_with_their_type(value: Any):
    message = option_pb2.GroupUpdate(options=options_to_message({"x": value}))
    found = from_message(option_pb2.GroupUpdate.FromString(message.SerializeToString()), values.GroupUpdate)
    assert found.options == {"x": value}
    assert type(found.options["x"]) is type(value)


def test_true_is_not_one():
    """bool is an int in Python; on the wire they are two."""
    assert option_to_message(True).WhichOneof("value") == "flag"
    assert option_to_message(1).WhichOneof("value") == "integer"
    assert option_to_message(1.0).WhichOneof("value") == "number"
    assert option_to_message(None).WhichOneof("value") is None
    assert option_to_message(Single(1.0)).WhichOneof("value") == "single"
    assert option_to_message((1.0, Single(1.0))).WhichOneof("value") == "values"
    assert option_to_message((1.0, 2)).WhichOneof("value") == "numbers"


@given(st.floats(width=32, allow_nan=False))
def test_numbers_of_float32_come_back_as_such(number: float):
    options: Any = {"x": Single(number), "y": (Single(number), 0.1, None)}
    message = option_pb2.GroupUpdate(options=options_to_message(options))
    found: Any = from_message(option_pb2.GroupUpdate.FromString(message.SerializeToString()), values.GroupUpdate)
    assert found.options == options
    assert type(found.options["x"]) is Single
    assert [type(each) for each in found.options["y"]] == [Single, float, type(None)]


def test_what_no_option_can_be_is_refused():
    with pytest.raises(TypeError, match=r"no option can be \[1\.0\]"):
        option_to_message([1.0])  # type: ignore[arg-type]


def test_a_part_that_says_nothing_is_there_all_the_same():
    """As a submessage of which all fields have their defaults."""
    report = values.FieldStatistics("weights", values.Statistics(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0))
    assert to_message(report).HasField("statistics")
    info = values.JobInfo("j", "sgd", {"betas": ()}, values.Async(), (), values.JobVersion())
    message = to_message(info)
    assert message.HasField("version")
    assert message.policy.WhichOneof("kind") == "async"
    assert message.defaults["betas"].WhichOneof("value") == "numbers"


@pytest.mark.parametrize("number", [0, 3, 99])
def test_a_dtype_that_does_not_exist_is_left_for_the_engine_to_refuse(number: int):
    spec = from_message(job_pb2.ParameterSpec(name="p", dtype=number), values.ParameterSpec)
    assert spec.dtype not in ("float32", "float64")
