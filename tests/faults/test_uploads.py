"""Uploads that break off or stand still: nothing of them is left, and the next one starts afresh."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from contract.plain import Plain, frame, group, header, job_spec, refusal_of, refused
from faults.processes import SECONDS, in_background, spawned, wait_for, worker
from faults.proxy import Proxy

import optd
from optd.local import LocalServer, local
from optd_wire.v1 import job_service_pb2, state_service_pb2, training_service_pb2

pytestmark = pytest.mark.slow

IDLE = 0.5


@pytest.fixture(scope="module")
def impatient() -> Iterator[LocalServer]:
    """A server that gives up an upload after half a second."""
    with local("--idle-seconds", str(IDLE)) as running:
        yield running


@pytest.fixture
def impatient_plain(impatient: LocalServer) -> Iterator[Plain]:
    with Plain(impatient.address) as stubs:
        yield stubs


def train(address: str, job: str, worker: str) -> list[float]:
    """One step of -1 on weights that start with zeros; returns what it gave."""
    weights = np.zeros(4, "f4")
    with optd.connect(address, job=job, worker=worker, timeout=SECONDS) as session:
        optd.SGD([weights], lr=1.0, session=session).step([np.ones(4, "f4")])
    return weights.tolist()


def test_a_creator_that_is_killed_leaves_nothing_and_who_waits_creates(server: LocalServer, plain: Plain, name: str):
    planned = plain.status().planned_bytes
    with spawned("creator.py", server.address, name) as creator:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "sent\n"
        assert name not in plain.job_names()
        assert plain.status().planned_bytes > planned
        with refused("JOB_EXISTS", "is being created by another worker"):
            plain.create(job_spec(name, [group("group0", {"param0": ((4,), "float32")})]), [])
        waiting = [in_background(lambda w=w: train(server.address, name, w)) for w in ("w0", "w1", "w2")]
        # The creator's upload, three workers that wait for it, and the question itself.
        wait_for(lambda: plain.status().requests == 5, "all workers wait for the job")
        assert not any(future.done() for future in waiting)
        creator.send_signal(signal.SIGKILL)
        trained = [future.result(SECONDS) for future in waiting]
    # One of them has created the job, with zeros: the 77 of the dead creator are nowhere.
    assert sorted(max(weights) for weights in trained)[0] == -3
    assert all(len(set(weights)) == 1 and weights[0] in (-1, -2, -3) for weights in trained)
    assert plain.weights(name)["param0"].tolist() == [-3] * 4
    assert plain.status().planned_bytes == planned + plain.summary(name).planned_bytes


def test_a_creator_that_is_killed_alone_leaves_no_name_and_no_memory(server: LocalServer, plain: Plain, name: str):
    planned = plain.status().planned_bytes
    with spawned("creator.py", server.address, name) as creator:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "sent\n"
        creator.kill()
    wait_for(lambda: plain.status().planned_bytes == planned, "the memory is free again")
    assert plain.status().requests == 1
    with refused("UNKNOWN_JOB"):
        plain.info(name)
    assert train(server.address, name, "w0") == [-1] * 4


def test_workers_wait_for_a_slow_creator_and_attach(server: LocalServer, plain: Plain, name: str):
    go_on = threading.Event()

    def requests() -> Iterator[job_service_pb2.CreateJobRequest]:
        spec = job_spec(name, [group("group0", {"param0": ((4,), "float32")})], lr=1.0)
        yield job_service_pb2.CreateJobRequest(spec=spec)
        go_on.wait(SECONDS)
        yield job_service_pb2.CreateJobRequest(frames=[frame(np.full(4, 10, "f4"))], last=True)

    creating = plain.jobs.CreateJob.future(requests(), timeout=SECONDS)
    wait_for(lambda: plain.status().requests == 2, "the upload has begun")
    waiting = in_background(lambda: train(server.address, name, "w0"))
    wait_for(lambda: plain.status().requests == 3, "the worker waits")
    go_on.set()
    assert creating.result(SECONDS).job.name == name
    assert waiting.result(SECONDS) == [9] * 4


def stalling(first: Any, *following: Any) -> Iterator[Any]:
    """A stream that begins and does not go on."""
    yield first
    yield from following
    threading.Event().wait(SECONDS)


def test_an_upload_that_stands_still_is_given_up(impatient_plain: Plain, name: str):
    plain = impatient_plain
    planned = plain.status().planned_bytes
    spec = job_spec(name, [group("g", {"w": ((4,), "float32")})])
    first = job_service_pb2.CreateJobRequest(spec=spec, frames=[frame(np.zeros(2, "f4"))])
    with refused("STALLED", f"{IDLE:g} s"):
        plain.jobs.CreateJob(stalling(first), timeout=SECONDS)
    assert plain.status().planned_bytes == planned
    assert name not in plain.job_names()
    plain.create(spec, [frame(np.zeros(4, "f4"))])


@pytest.mark.parametrize("rpc", ["Push", "Step", "AddGroup", "WriteState"])
def test_whatever_stands_still_in_mid_upload_is_given_up_and_changes_nothing(
    impatient_plain: Plain, name: str, rpc: str
):
    plain = impatient_plain
    plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
    epoch = plain.join(name)
    before = plain.everything(name)
    head = header(name, "w0", epoch, 1)
    whole = [frame(np.ones(4, "f4"))]
    with refused("STALLED", f"{IDLE:g} s"):
        match rpc:
            case "Push":
                plain.training.Push(
                    stalling(training_service_pb2.PushRequest(header=head, frames=whole)), timeout=SECONDS
                )
            case "Step":
                list(
                    plain.training.Step(
                        stalling(training_service_pb2.StepRequest(header=head, frames=whole)), timeout=SECONDS
                    )
                )
            case "AddGroup":
                added = group("h", {"v": ((4,), "float32")})
                first = job_service_pb2.AddGroupRequest(job=name, group=added)
                plain.jobs.AddGroup(stalling(first), timeout=SECONDS)
            case "WriteState":
                state = state_service_pb2.WriteStateHeader(job=name, worker="w0", epoch=epoch)
                first = state_service_pb2.WriteStateRequest(header=state, frames=whole)
                plain.state.WriteState(stalling(first), timeout=SECONDS)
    assert plain.everything(name) == before
    assert plain.push(head, whole).version.version == 1


def test_pushes_that_stand_still_do_not_keep_others_out(server: LocalServer, name: str):
    """More of them than a job has room for; each of another worker, each in the middle of its upload."""
    with Plain(server.address) as plain, Plain(server.address) as stalled:
        plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
        heads = [header(name, f"s{index}", plain.join(name, f"s{index}"), 1) for index in range(12)]
        calls = [
            stalled.training.Push.future(stalling(training_service_pb2.PushRequest(header=head)), timeout=SECONDS)
            for head in heads
        ]
        wait_for(lambda: plain.status().requests == 13, "all of them have begun")
        epoch = plain.join(name, "honest")
        pushed = in_background(lambda: plain.push(header(name, "honest", epoch, 1), [frame(np.ones(4, "f4"))]))
        assert not any(call.done() for call in calls)
        stalled.channel.close()  # they die
        assert pushed.result(SECONDS).version.version == 1


def test_13_a_worker_that_is_killed_in_mid_push_has_pushed_nothing(server: LocalServer, plain: Plain, name: str):
    """With kill -9, when at least a quarter of its gradient is on the server's side of a slow link."""
    elements = 1_000_000
    with Proxy(server.address) as proxy, worker(proxy.address, name, "w0", lane="grpc", elements=elements) as victim:
        proxy.throttle(up=2e6)
        before = proxy.passed
        victim.tell("step", gradient=1000)
        wait_for(lambda: proxy.passed - before > elements, "a quarter has passed")
        victim.signal(signal.SIGKILL)
        wait_for(lambda: plain.status().requests == 1, "its call ends")
        assert proxy.passed - before < 4 * elements
    assert plain.info(name).version.version == 0
    with worker(server.address, name, "w0", lane="grpc", elements=elements) as successor:
        assert successor.ask("step", gradient=1)["weights"] == [-1] * 4


def test_a_step_stream_may_rest_between_its_steps(impatient_plain: Plain, name: str):
    """Computing a gradient may take longer than an upload may stand still."""
    plain = impatient_plain
    plain.create(job_spec(name, [group("g", {"w": ((4,), "float32")})], lr=1.0), [frame(np.zeros(4, "f4"))])
    epoch = plain.join(name)
    computed = threading.Event()

    def requests() -> Iterator[training_service_pb2.StepRequest]:
        for sequence in (1, 2):
            head = header(name, "w0", epoch, sequence)
            yield training_service_pb2.StepRequest(header=head, frames=[frame(np.ones(4, "f4"))], last=True)
            computed.wait(SECONDS)

    answers = plain.training.Step(requests(), timeout=SECONDS)
    assert next(answers).pushed.applied_version == 1
    # Meanwhile another upload begins, and is given up: so long does this one rest.
    with refused("STALLED"):
        spec = job_spec(name + ".other", [group("g", {"w": ((4,), "float32")})])
        plain.jobs.CreateJob(stalling(job_service_pb2.CreateJobRequest(spec=spec)), timeout=SECONDS)
    computed.set()
    assert next(answers).pushed.applied_version == 2


def test_gradients_of_a_push_that_broke_off_are_in_no_other_push(server: LocalServer, name: str):
    """Room for gradients is used again. Whoever gets it must find nothing of the one before in it, not even while
    that one's last message is still being copied."""
    count = 3 << 20
    with ExitStack() as stack:
        plain = stack.enter_context(Plain(server.address))
        plain.create(job_spec(name, [group("g", {"w": ((count,), "float32")})], lr=1.0), [frame(np.zeros(count, "f4"))])
        wild = plain.join(name, "wild")
        good = plain.join(name, "good")
        poison = training_service_pb2.PushRequest(header=header(name, "wild", wild, 1))
        poison.frames.append(frame(np.full(count, 1e30, "f4")))
        pushed = training_service_pb2.PushRequest(frames=[frame(np.ones(count, "f4"))], last=True)
        for sequence in range(1, 9):
            head = training_service_pb2.PushRequest(header=header(name, "good", good, sequence))
            sent = threading.Event()
            breaking = Plain(server.address)
            call = breaking.training.Push.future(announced(sent, poison), timeout=SECONDS)
            assert sent.wait(SECONDS)
            # With another delay each time, so that the break falls into another moment of the copying.
            threading.Event().wait(0.002 * sequence)
            call.cancel()
            breaking.channel.close()
            result = plain.training.Push(iter([head, pushed]), timeout=SECONDS).result
            assert result.version.version == sequence
            found = plain.weights(name)["w"]
            assert (found == -sequence).all(), f"after push {sequence}: {np.unique(found)}"


def announced(sent: threading.Event, request: Any) -> Iterator[Any]:
    yield request
    sent.set()
    threading.Event().wait(SECONDS)


def test_an_upload_that_was_given_up_is_told_as_such(impatient_plain: Plain, name: str):
    call = impatient_plain.jobs.CreateJob.future(iter(()), timeout=SECONDS)
    assert refusal_of(call.exception(SECONDS)).reason == "INVALID_REQUEST"
    with refused("STALLED"):
        impatient_plain.jobs.CreateJob(stalled_before_anything(), timeout=SECONDS)


def stalled_before_anything() -> Iterator[Any]:
    threading.Event().wait(SECONDS)
    yield from ()
