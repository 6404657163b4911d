"""What every implementation of the transport's seam does: gRPC with a real server, and the fake one."""

import numpy as np
import pytest

from optd import errors
from optd.params.flat_view import FlatView, empty_arrays
from optd.transport import call_threads
from optd.transport.fake.connection import FakeConnection
from optd.transport.fake.server import FakeServer
from optd.transport.requests import Delivery, Known, PullRequest
from optd.transport.server_calls import ServerCalls
from optd_wire.values import Async, GroupSpec, JobSpec, ParameterSpec, PushHeader

SPECS = (ParameterSpec("w", (3,), "float32"), ParameterSpec("b", (2, 2), "float64"))
VIEW = FlatView([SPECS])


@pytest.fixture(params=["grpc", "fake"])
def calls(request, server):
    made = (
        ServerCalls(FakeConnection(FakeServer())) if request.param == "fake" else ServerCalls.over_grpc(server.address)
    )
    yield made
    made.close()


def numbers(value):
    return VIEW.source([[np.full(3, value, "f4"), np.full((2, 2), value)]])


def spec(name):
    return JobSpec(name, "sgd", {"lr": 1.0}, (GroupSpec("g", {}, SPECS),), Async())


def pulled(calls, name, known=None):
    arrays = empty_arrays([SPECS])
    result = calls.pull(PullRequest(name, known=known), lambda frames: VIEW.write(frames, arrays), 10)
    return result, [array.ravel()[0] for array in arrays[0]]


@pytest.fixture
def epoch(calls, name):
    """That of worker w0 in a job whose weights are 5."""
    calls.create_job(spec(name), numbers(5.0), 10, creation_id="mine")
    return calls.join(name, "w0", None, 1, 10).epoch


def step(calls, name, epoch, sequence, gradients=None, delivery=None):
    arrays = empty_arrays([SPECS])
    header = PushHeader(name, "w0", epoch, sequence, 0)
    delivery = delivery or Delivery()
    pushed, result = calls.step(
        header, gradients or numbers(1.0), delivery, lambda frames: VIEW.write(frames, arrays), 10
    )
    return pushed, result, [array.ravel()[0] for array in arrays[0]]


def test_a_call_returns_what_an_upload_has_brought(calls, name, epoch):
    info = calls.get_job(name, 10)
    assert (info.name, info.algorithm, info.id, info.version.version) == (name, "sgd", "mine", 0)
    assert [(each.name, each.shape, each.dtype) for each in info.groups[0].parameters] == [
        ("w", (3,), "float32"),
        ("b", (2, 2), "float64"),
    ]


def test_a_repeated_upload_finds_its_job_and_another_one_is_refused(calls, name, epoch):
    assert calls.create_job(spec(name), numbers(6.0), 10, creation_id="mine").id == "mine"
    with pytest.raises(errors.JobExists):
        calls.create_job(spec(name), numbers(6.0), 10, creation_id="yours")
    assert pulled(calls, name)[1] == [5.0, 5.0]


def test_a_download_brings_frames_unless_they_are_known(calls, name, epoch):
    result, weights = pulled(calls, name)
    assert (result.not_modified, weights) == (False, [5.0, 5.0])
    known = Known(result.version.version, result.version.revision)
    assert pulled(calls, name, known)[0].not_modified


def test_steps_follow_one_another_on_a_stream(calls, name, epoch):
    for sequence in (1, 2, 3):
        pushed, result, weights = step(calls, name, epoch, sequence)
        assert (pushed.applied_version, pushed.repeat, result.version.version) == (sequence, False, sequence)
        assert weights == [5.0 - sequence] * 2


def test_a_repeat_gets_the_first_reply_and_a_gap_is_refused(calls, name, epoch):
    first = step(calls, name, epoch, 1)[0]
    again, _, weights = step(calls, name, epoch, 1)
    assert (again.applied_version, again.repeat, weights) == (first.applied_version, True, [4.0, 4.0])
    with pytest.raises(errors.SequenceGap, match="sequence 3; its last one was 1, so the next is 2"):
        step(calls, name, epoch, 3)
    assert step(calls, name, epoch, 2)[2] == [3.0, 3.0]


def test_a_push_without_delivery_brings_nothing(calls, name, epoch):
    pushed, _, weights = step(calls, name, epoch, 1, delivery=Delivery(none=True))
    assert pushed.applied_version == 1
    assert pulled(calls, name)[1] == [4.0, 4.0]
    del weights  # nothing was written


def test_what_the_frames_of_a_step_raise_is_raised_and_the_next_one_is_made(calls, name, epoch):
    def broken():
        yield from numbers(1.0)()
        raise errors.EncodingOverflow(encoding="float16", bound=65504.0, value=1e9)

    with pytest.raises(errors.EncodingOverflow):
        step(calls, name, epoch, 1, broken)
    assert step(calls, name, epoch, 1)[2] == [4.0, 4.0]


def test_the_servers_own_errors_are_raised(calls, name, epoch):
    with pytest.raises(errors.UnknownJob):
        calls.get_job(name + "-other", 10)
    with pytest.raises(errors.UnknownWorker):
        calls.renew_lease(name, "w1", 1, 10)
    again = calls.join(name, "w0", None, 1, 10)
    assert (again.epoch, again.previous_sequence) == (epoch + 1, 0)
    with pytest.raises(errors.StaleEpoch, match=f"joined again.* and has epoch {epoch + 1}"):
        step(calls, name, epoch, 1)
    step(calls, name, again.epoch, 1)
    assert calls.join(name, "w0", None, 1, 10).previous_sequence == 1
    calls.leave(name, "w0", epoch + 2, 10)
    with pytest.raises(errors.StaleEpoch, match="it has left"):
        calls.renew_lease(name, "w0", epoch + 2, 10)


def test_a_call_that_an_interrupt_gave_up_never_overtakes_a_later_one(server, name, monkeypatch):
    """A thread that begins a Join late would take the worker's name from the session that has joined meanwhile."""
    calls = ServerCalls.over_grpc(server.address)
    calls.create_job(spec(name), numbers(5.0), 10, creation_id="mine")
    late = []

    def interrupted(work):
        late.append(work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(call_threads, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.join(name, "w0", None, 1, 10)
    epoch = calls.join(name, "w0", None, 1, 10).epoch
    with pytest.raises(InterruptedError):
        late[0]()
    calls.renew_lease(name, "w0", epoch, timeout=10)
    calls.close()
