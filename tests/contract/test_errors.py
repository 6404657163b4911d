"""Errors as data: each one keeps its class, its message and its values on the way from server to client."""

import copy
import gc
import importlib
import pickle
import re
from string import Formatter

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

import optd
from optd_wire import errors
from optd_wire.error_status import DOMAIN, from_status, to_status
from optd_wire.errors import BY_REASON, Code, OptdError

REASONS = sorted(BY_REASON)


def family(root: type[OptdError]) -> set[type[OptdError]]:
    return {root}.union(*(family(child) for child in root.__subclasses__()))


def names(error: type[OptdError]) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(error.template) if name is not None]


NARROWED = {errors.StaleEpoch}
"""Errors with a message of their own, of which another error is a case that callers may treat in another way."""


def test_every_concrete_error_has_reason_code_and_template():
    for error in family(OptdError):
        if error.__subclasses__() and error not in NARROWED:
            assert not error.template, f"{error.__name__} is a kind of error, and has a message of its own"
            continue
        assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", error.reason), error
        assert error.template
        assert error.__doc__
        assert error.code in Code
        assert BY_REASON[error.reason] is error


def test_codes_are_the_canonical_ones():
    assert {code.name: code.value for code in Code}.items() <= dict(code_pb2.Code.items()).items()


def test_reasons_are_unique():
    with pytest.raises(TypeError, match="UNKNOWN_JOB"):
        type("Another", (OptdError,), {"reason": "UNKNOWN_JOB", "template": ""})
    gc.collect()  # else it is still one of the family in the next test
    assert len({error.reason for error in BY_REASON.values()}) == len(BY_REASON)


def test_optd_errors_exports_every_error():
    for error in family(OptdError):
        assert getattr(optd.errors, error.__name__) is error
        assert error.__name__ in optd.errors.__all__
    assert optd.OptdError is OptdError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.UnknownOption, ValueError),
        (errors.UnknownJob, LookupError),
        (errors.WrongToken, PermissionError),
        (errors.Unreachable, ConnectionError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_errors_are_caught_as_what_python_calls_them(error: type[OptdError], builtin: type[Exception]):
    assert issubclass(error, builtin)


@pytest.mark.parametrize("reason", REASONS)
def test_every_error_comes_back_from_its_status(reason: str):
    error_class = BY_REASON[reason]

    @given(st.fixed_dictionaries({name: st.text(max_size=12) for name in names(error_class)}))
    @settings(max_examples=15, deadline=None)
    def comes_back(values: dict[str, str]) -> None:
        error = error_class(**values)
        status = status_pb2.Status.FromString(to_status(error).SerializeToString())
        assert (status.code, status.message) == (error.code, str(error))
        found = from_status(status)
        assert type(found) is error_class
        assert (str(found), found.values) == (str(error), values)

    comes_back()


@pytest.mark.parametrize("reason", REASONS)
def test_every_error_survives_pickle_and_copy(reason: str):
    """As it has to on its way out of a pool of processes."""
    error = BY_REASON[reason](**{name: f"<{name}>" for name in names(BY_REASON[reason])})
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(found) is type(error)
        assert (str(found), found.values) == (str(error), error.values)


def test_a_message_quotes_every_value():
    for error_class in BY_REASON.values():
        values = {name: f"value-of-{name}" for name in names(error_class)}
        assert all(value in str(error_class(**values)) for value in values.values())


def test_the_status_has_one_error_info_and_a_code_that_grpc_knows():
    status = to_status(errors.UnknownJob(job="digits"))
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("optd", "UNKNOWN_JOB", {"job": "digits"})
    assert rpc_status.to_status(status).code.value[0] == Code.NOT_FOUND


LATER = (errors.ShuttingDown, errors.TooManyBytes, errors.TooManyRequests)


def test_who_may_try_again_is_told_when():
    assert {error for error in BY_REASON.values() if error.retry_after is not None} == set(LATER)
    for error_class in LATER:
        status = to_status(error_class(**dict.fromkeys(names(error_class), "1")))
        info = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(info)
        assert info.retry_delay.ToTimedelta().total_seconds() == error_class.retry_after
        info.retry_delay.FromMilliseconds(12_250)
        status.details[1].Pack(info)
        found = from_status(status)
        assert found is not None
        assert found.retry_after == copy.copy(found).retry_after == 12.25
        info.retry_delay.FromSeconds(-1)
        status.details[1].Pack(info)
        found = from_status(status)
        assert found is not None
        assert found.retry_after == error_class.retry_after


@pytest.mark.parametrize(
    "info",
    [
        error_details_pb2.ErrorInfo(reason="UNKNOWN_JOB", domain="example.com", metadata={"job": "j"}),
        error_details_pb2.ErrorInfo(reason="OF_ANOTHER_VERSION", domain=DOMAIN),
        error_details_pb2.ErrorInfo(reason="UNKNOWN_JOB", domain=DOMAIN),
    ],
    ids=["another domain", "another version's reason", "another version's values"],
)
def test_what_another_program_says_is_no_error_of_ours(info: error_details_pb2.ErrorInfo):
    status = status_pb2.Status(code=5, message="gone")
    status.details.add().Pack(info)
    assert from_status(status) is None


def test_a_status_without_details_is_no_error_of_ours():
    assert from_status(status_pb2.Status(code=5, message="gone")) is None


def tree() -> dict[str, tuple[str, str]]:
    """By error: the kind and the file that the docstring of the folder shows it under."""
    shown: dict[str, tuple[str, str]] = {}
    kind = file = ""
    for line in (errors.__doc__ or "").partition("OptdError\n")[2].splitlines():
        text = line.strip(" |`-")
        if line.lstrip().startswith(("|- ", "`- ")):
            kind = text.split()[0]
            continue
        if ":" in text:
            file, _, text = text.partition(":")
        shown |= {name.strip(): (kind, file) for name in text.split(",") if name.strip()}
    return shown


def test_the_tree_in_the_docstring_has_every_error_in_its_place():
    shown = tree()
    assert shown.keys() == {error.__name__ for error in BY_REASON.values()}
    for name, (kind, file) in shown.items():
        error = getattr(importlib.import_module(f"optd_wire.errors.{file}"), name)
        assert issubclass(error, getattr(errors, kind)), name
        assert error is getattr(errors, name)
